"""Which bytes of a mirror are there: a small file that all processes of a machine keep together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from kalavai_nb.weights.cache import locked
from kalavai_nb.weights.ranges import Range, Spans, merged

HAVE = "have.json"
LOCK = "lock"


class Record:
    """The spans of each file of a mirror that have been written. Read without a lock: it is replaced whole."""

    def __init__(self, directory: Path) -> None:
        self.path, self.lock = directory / HAVE, directory / LOCK

    def spans(self) -> dict[str, Spans]:
        """By file, in order and apart."""
        try:
            content = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {file: [(start, end) for start, end in spans] for file, spans in content.items()}

    def add(self, ranges: Iterable[Range]) -> None:
        """These are written, and are on the disk."""
        with locked(self.lock):
            present = [Range(file, start, end - start) for file, spans in self.spans().items() for start, end in spans]
            self._replace([*present, *ranges])

    def forget(self, file: str) -> None:
        """Nothing of this file is there any more. The caller holds the lock."""
        self._replace(
            Range(other, start, end - start)
            for other, spans in self.spans().items()
            for start, end in spans
            if other != file
        )

    def _replace(self, ranges: Iterable[Range]) -> None:
        content: dict[str, Spans] = {}
        for file, offset, length in merged(ranges):
            content.setdefault(file, []).append((offset, offset + length))
        part = self.path.with_suffix(".part")
        with open(part, "w") as out:
            json.dump(content, out)
            out.flush()
            os.fsync(out.fileno())
        part.replace(self.path)
