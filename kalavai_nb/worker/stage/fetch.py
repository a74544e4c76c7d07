"""Before a stage loads: the tensors it needs come to this machine, from the hub or from the notebook, once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kalavai_nb.frames import Head
from kalavai_nb.weights.mirror import Mirror
from kalavai_nb.worker.stage.model import tensors_of

SAY_SECONDS = 0.2
_NUMBERS = itertools.count(1)

Say = Callable[..., None]
NextContent = Callable[[], tuple[Head, bytearray]]


def fetch(manifest: dict[str, Any], start: int, end: int, say: Say, next_content: NextContent) -> Path:
    """The directory to load layers [start, end) from, with all they need in it.

    What is missing is said (``need``), and the owner sends it; of a model on the hub, it is fetched from there.
    """
    mirror = Mirror(manifest)
    missing = mirror.missing(tensors_of(mirror.directory, start, end))
    if not missing:
        return mirror.directory
    mirror.require_room(missing)
    total = sum(each.length for each in missing)
    progress = Progress(say, "fetch")
    if mirror.manifest.kind == "hub":
        mirror.fetch_from_hub(missing, progress)
        return mirror.directory
    number = next(_NUMBERS)
    say("need", number=number, ranges=[list(each) for each in missing])
    done = 0
    while done < total:
        head, body = next_content()
        # the answer to an earlier question may still be coming
        if head.get("number") != number:
            continue
        if "error" in head:
            raise OSError(head["error"])
        mirror.write(head["file"], head["offset"], bytes(body))
        done += len(body)
        progress(done, total)
    mirror.commit()
    return mirror.directory


class Progress:
    """Says how far something is, a few times a second, and its end."""

    def __init__(self, say: Say, phase: str) -> None:
        self._say, self._phase = say, phase
        self._due = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._due or done == total:
            self._due = now + SAY_SECONDS
            self._say("progress", phase=self._phase, done=done, total=total)
