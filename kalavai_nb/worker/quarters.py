"""The directory of one worker's children: ranks, trials and stages. It is gone with the worker, however that ends.

It lies in the one that all workers of a machine share. A worker that is killed takes nothing away, and what trials have
written may be large; so each holds a lock, which goes with its process, and whoever comes next takes away what is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from kalavai_nb.places import alone

TURN = "quarters.lock"


class Quarters:
    """``directory`` is this worker's own."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        with alone(shared / TURN):
            _clear(shared)
            # short, since sockets lie below it
            self.directory = shared / f"w-{secrets.token_hex(4)}"
            # first, so that a directory without a lock, which nobody would take away, is never there
            self._lock = os.open(_lock_of(self.directory), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.directory.mkdir(mode=0o700)

    def close(self) -> None:
        """Take it away, when all children have ended."""
        with alone(self._shared / TURN):
            os.close(self._lock)
            _clear(self._shared)


def _clear(shared: Path) -> None:
    """Take away the directories of workers that are gone."""
    for lock in shared.glob("w-*.lock"):
        with contextlib.suppress(OSError):
            file = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory = lock.with_suffix("")
                shutil.rmtree(directory, ignore_errors=True)
                # a child that has yet to notice the end may have written just now; the next who comes looks again
                if not directory.exists():
                    lock.unlink()
            finally:
                os.close(file)


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")
