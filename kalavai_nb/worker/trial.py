"""Inside a child: trials of one function, one after another, each with a log of its own. An error is an outcome, too.

Most processes run a single trial. Short trials share one, and then each has the function rebuilt from its bytes, so
that nothing it keeps in its closure or globals reaches the next.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import faulthandler
import os
import random
import secrets
import signal
import socket
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import cloudpickle

from kalavai_nb.blobs import BlobStore, load, load_bytes, pack
from kalavai_nb.errors import TrialStopped
from kalavai_nb.worker.live import LiveTrial, TrialOrder, stray
from kalavai_nb.worker.wire import Message, Wire

INLINE_BYTES = 1 << 20
_OUT_OF_MEMORY = ("CUDA out of memory", "HIP out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "RESOURCE_EXHAUSTED")


def main(end: socket.socket, blobs: str) -> None:
    """Run the trials that come over this socket until it is closed."""
    # what the fork server's imports registered is not ours to run
    atexit._clear()
    # only while a function runs is there something to interrupt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    sys.path.insert(0, "")
    wire, store = Wire(end), BlobStore(blobs)
    while (message := wire.receive()) is not None:
        if not stray(message):
            wire.send(_run(TrialOrder(**message), wire, store))  # type: ignore[typeddict-item]
    # writers of metrics and the like flush what they hold when their process ends
    atexit._run_exitfuncs()


def _run(order: TrialOrder, wire: Wire, store: BlobStore) -> Message:
    _log_to(order["log"])
    _seed(order["seed"])
    end: Message = {"kind": "end", "index": order["index"], "status": "ok"}
    trial = LiveTrial(order, wire, store)
    place, environment = os.getcwd(), dict(os.environ)
    started = time.perf_counter()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fn = load(*order["fn"])
        config = order["config"]
        content = load_bytes(*config) if isinstance(config, list) else load(config["path"], config["sizes"])
        value = fn(content, trial) if order["takes_trial"] else fn(content)
        end["value"] = _hand_out(value, store)
    except TrialStopped as stopped:
        end |= {"status": "stopped", "why": str(stopped)}
    except BaseException as error:  # KeyboardInterrupt and SystemExit are outcomes, too
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end |= {"status": "error", **_describe(error)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end["seconds"] = time.perf_counter() - started
    _restore(place, environment)
    try:
        if files := _hand_out_files(Path(order["directory"]), store):
            end["files"] = files
    except OSError as error:
        print(f"what is in trial.dir could not be packed: {error}", file=sys.stderr)
    # whatever the function has done to them
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    return end


def _restore(place: str, environment: dict[str, str]) -> None:
    """The next trial in this process finds what this one found."""
    with contextlib.suppress(OSError):
        os.chdir(place)
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    # a trial may have closed or replaced them
    sys.stdout = _open_still(sys.stdout, 1)
    sys.stderr = _open_still(sys.stderr, 2)


def _open_still(stream: TextIO | None, descriptor: int) -> TextIO:
    whole = stream is not None and not stream.closed and stream.fileno() == descriptor
    return stream if stream is not None and whole else open(descriptor, "w", buffering=1, closefd=False)


def _log_to(path: str) -> None:
    """From here on, all that is written to stdout and stderr is this trial's log, in order."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _seed(seed: int) -> None:
    # processes forked from one server would all draw the same numbers
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def _hand_out(value: object, store: BlobStore) -> Message:
    try:
        packed = pack(value)
    except Exception as error:
        text = f"what it returned, a {type(value).__name__}, cannot be sent home: {error}"
        raise TypeError(text) from error
    handed: Message = {"sizes": list(packed.blob.sizes)}
    if packed.blob.total_bytes <= INLINE_BYTES:
        return {**handed, "digest": packed.blob.digest, "inline": packed.content()}
    own = packed.renamed()
    store.keep(own)
    return {**handed, "digest": own.blob.digest}


def _hand_out_files(directory: Path, store: BlobStore) -> Message | None:
    """What the trial left in its directory, as one archive in the store."""
    if not directory.exists() or not any(directory.iterdir()):
        return None
    name = secrets.token_hex(16)
    path = store.path(name)
    with tarfile.open(path, "w") as archive:
        archive.add(directory, arcname=".")
    return {"digest": name, "sizes": [path.stat().st_size]}


def _describe(error: BaseException) -> dict[str, Any]:
    """The error as data; its own object only where it can be pickled."""
    # the first frame is ours
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    text = _plain(lambda: "".join(traceback.format_exception(type(error), error, frames)))
    described = {
        "ename": type(error).__name__,
        "evalue": _plain(lambda: str(error)),
        "traceback": text,
        "gpu_out_of_memory": _is_gpu_out_of_memory(error),
    }
    # whoever reads the log finds the error where it happened, behind what was printed before
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, text.encode())
    try:
        return {**described, "error": base64.b64encode(cloudpickle.dumps(error)).decode()}
    except Exception:
        return described


def _plain(text: Callable[[], str]) -> str:
    """A text that can be written and sent, whatever an exception's own code makes of it."""
    try:
        return text().encode("utf-8", "backslashreplace").decode()
    except Exception as error:
        return f"(it cannot be printed: {type(error).__name__})"


def _is_gpu_out_of_memory(error: BaseException | None) -> bool:
    """Whether the device had too little memory: by the type's name in torch and CuPy, by the text in others."""
    if error is None:
        return False
    named = any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__)
    said = any(text in _plain(lambda: str(error)) for text in _OUT_OF_MEMORY)
    return named or said or _is_gpu_out_of_memory(error.__cause__)
