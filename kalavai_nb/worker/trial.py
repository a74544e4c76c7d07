"""Inside a child: one call of a function, its outcome left in a file. A fresh process for every trial."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import cloudpickle

from kalavai_nb.blobs import BlobStore, load, pack

OUTCOME = "outcome"


def main(directory: str, fn: tuple[str, list[int]], config: tuple[str, list[int]], blobs: str) -> None:
    """Call the pickled function on the pickled config and write how it went to ``directory``/outcome.

    An exception is an outcome, never something that ends the process: whoever reads finds ``value`` or ``error``.
    """
    # what the function prints is one log, in order
    os.dup2(1, 2)
    sys.path.insert(0, "")
    started = time.perf_counter()
    outcome: dict[str, Any] = {"status": "ok"}
    try:
        value = load(*fn)(load(*config))
        packed = pack(value)
        BlobStore(blobs).keep(packed)
        outcome["value"] = {"digest": packed.blob.digest, "sizes": list(packed.blob.sizes)}
    except BaseException as error:
        outcome = {"status": "error", **_describe(error)}
    outcome["seconds"] = time.perf_counter() - started
    sys.stdout.flush()
    sys.stderr.flush()
    part = Path(directory, OUTCOME + ".part")
    part.write_text(json.dumps(outcome))
    part.replace(Path(directory, OUTCOME))


def _describe(error: BaseException) -> dict[str, Any]:
    """The error as data; its own object only where it can be pickled."""
    # the first frame is ours
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    text = "".join(traceback.format_exception(type(error), error, frames))
    described = {"ename": type(error).__name__, "evalue": str(error), "traceback": text}
    try:
        return {**described, "error": base64.b64encode(cloudpickle.dumps(error)).decode()}
    except Exception:
        return described
