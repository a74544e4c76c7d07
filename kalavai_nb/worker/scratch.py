"""The directory that the workers of one machine share, where others started them: content goes to each machine once.

Nobody starts before the first of them or ends after the last. So each has the directory's lock shared, and where
nobody has it, the directory is taken away: a process that is killed lets go of it as well. They come and go one at a
time, by a lock that lies beside.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kalavai_nb.places import alone
from kalavai_nb.state import machine_id

LOCK = "lock"
PREFIX = "kalavai-"
# an IPC socket's path may have 107 bytes, and ends up to 77 bytes below this
LONGEST_PARENT = 30


class Scratch:
    """The directory of one pool on this machine, for as long as this worker is there.

    ``machine`` is what `Device.machine` is: workers that see other files or other GPUs of the same machine (jobs of a
    batch system may) are not on one machine, as they cannot share content or take each other's GPUs.
    """

    def __init__(self, pool: str, gpus: Iterable[str]) -> None:
        seen = hashlib.sha256(" ".join(sorted(gpus)).encode()).hexdigest()[:4]
        self._parent = _parent()
        root = self._parent / f"{PREFIX}{os.getuid()}-{pool}-{seen}"
        with alone(_turn(self._parent)):
            _clear(self._parent)
            root.mkdir(mode=0o700, exist_ok=True)
            if root.is_symlink() or root.stat().st_uid != os.getuid():
                raise PermissionError(f"{root} belongs to somebody else")
            self._lock = os.open(root / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            self.directory = next((path for path in root.iterdir() if path.is_dir()), None) or _made_in(root)
        self.machine = f"{machine_id()}/{self.directory.name}"

    def close(self) -> None:
        """Leave it; the last one takes it away."""
        with alone(_turn(self._parent)):
            os.close(self._lock)
            _clear(self._parent)


def _parent() -> Path:
    usual = tempfile.gettempdir()
    return Path(usual if len(os.fsencode(usual)) <= LONGEST_PARENT else "/tmp")


def _turn(parent: Path) -> Path:
    return parent / f"{PREFIX}{os.getuid()}.lock"


def _made_in(root: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="", dir=root))


def _clear(parent: Path) -> None:
    """Take away what nobody uses: that of the last one who left, or of workers that were killed."""
    for lock in parent.glob(f"{PREFIX}{os.getuid()}-*/{LOCK}"):
        with contextlib.suppress(OSError):
            file = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(file)
