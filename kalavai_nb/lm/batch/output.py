"""The files of a run: lines in the order of the rows, each once, whatever ends the process that writes them.

``output.jsonl`` only ever grows at its end, by the next row. A row that is finished before its turn goes to
``ahead.jsonl`` at once, and from there, with the same bytes, to its place: nothing that is finished is lost, and the
output is in order at any moment, not only at the end. Each line is handed to the operating system before anybody hears
of its row, so that it outlives this process; it is forced to the disk once a second, so that a machine without power
loses the work of the last second, which is then done again. A line that was cut off is cut away.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from kalavai_nb.errors import OptionError

OUTPUT, AHEAD, OLD, LOCK = "output.jsonl", "ahead.jsonl", "output.old.jsonl", ".lock"
SYNC_SECONDS = 1.0
# the file of what is ahead is written anew when most of it has found its place
AHEAD_LINES = 1024


class Lock:
    """One run at a time in a folder. The operating system gives it back when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise OptionError(
                f"another run writes to {folder} ({holder}). Wait for it or stop it, or give another out=."
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Output:
    """The lines of one run. One thread writes; ``done`` and `records` are for any."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / OUTPUT
        self.done = _repair(self.path)
        self._output = self.path.open("ab")
        self._ahead_path = folder / AHEAD
        self._ahead = {index: line for index, line in _numbered(self._ahead_path) if index >= self.done}
        self._ahead_file, self._ahead_lines = self._rewrite_ahead()
        self._synced_at, self._is_synced = time.monotonic(), True
        self._take_up()

    @property
    def finished(self) -> int:
        """Rows that are done, those that wait for their turn among them."""
        return self.done + len(self._ahead)

    @property
    def waiting(self) -> dict[int, bytes]:
        """The lines of rows that wait for their turn, as they are now."""
        return dict(self._ahead)

    def put(self, index: int, line: bytes) -> None:
        """This row is finished."""
        if index == self.done:
            self._take_up(line)
        else:
            self._append(self._ahead_file, line)
            self._ahead[index] = line
            self._ahead_lines += 1
        if self._ahead_lines > AHEAD_LINES + 2 * len(self._ahead):
            self._ahead_file.close()
            self._ahead_file, self._ahead_lines = self._rewrite_ahead()

    def sync(self, *, now: bool = False) -> None:
        """Have the disk hold what was written, if it is time for that."""
        if self._is_synced or (not now and time.monotonic() - self._synced_at < SYNC_SECONDS):
            return
        for file in (self._output, self._ahead_file):
            os.fsync(file.fileno())
        self._synced_at, self._is_synced = time.monotonic(), True

    def records(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The lines that are in their place, from a row on."""
        if self.done:
            with self.path.open("rb") as file:
                yield from map(json.loads, islice(file, start, self.done))

    def failed(self) -> Iterator[dict[str, Any]]:
        """Those of rows that failed."""
        return (record for record in self.records() if "error" in record)

    def close(self) -> None:
        self.sync(now=True)
        self._output.close()
        self._ahead_file.close()
        if not self._ahead:
            self._ahead_path.unlink(missing_ok=True)

    def _take_up(self, line: bytes | None = None) -> None:
        """Write the row whose turn it is, and those that waited for it."""
        lines = [] if line is None else [line]
        while waiting := self._ahead.get(self.done + len(lines)):
            lines.append(waiting)
        if lines:
            self._append(self._output, b"".join(lines))
        start, self.done = self.done, self.done + len(lines)
        for index in range(start, self.done):
            self._ahead.pop(index, None)
        if not self._ahead and self._ahead_lines:
            self._ahead_file.truncate(0)
            self._ahead_lines = 0

    def _append(self, file: BinaryIO, lines: bytes) -> None:
        file.write(lines)
        file.flush()
        self._is_synced = False

    def _rewrite_ahead(self) -> tuple[BinaryIO, int]:
        draft = self._ahead_path.with_suffix(".new")
        with draft.open("wb") as file:
            file.writelines(self._ahead.values())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._ahead_path)
        return self._ahead_path.open("ab"), len(self._ahead)


def set_aside(folder: Path) -> None:
    """Another job begins here: what the last one left is kept once."""
    if (folder / OUTPUT).exists():
        (folder / OUTPUT).replace(folder / OLD)
    (folder / AHEAD).unlink(missing_ok=True)


def _repair(path: Path) -> int:
    """Cut away what was not written whole; the number of lines that were."""
    end = count = 0
    for index, line in _numbered(path):
        if index != count:
            break
        end, count = end + len(line), count + 1
    if path.exists() and path.stat().st_size > end:
        with path.open("r+b") as file:
            file.truncate(end)
    return count


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """(row, line) of lines that are whole, up to the first that is not."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            head, comma, _ = line.partition(b",")
            number = head.removeprefix(b'{"_row": ')
            # a machine that lost power may leave zeros where it had no time to write
            if not (comma and number.isdigit() and line.endswith(b"}\n")) or b"\0" in line:
                return
            yield int(number), line
