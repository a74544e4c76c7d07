"""Where this user's pools and memberships are kept: directories of their own, readable by nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_data_path

MOST_BYTES = 1 << 22
_ROOM_BYTES = 1 << 14


def data_directory() -> Path:
    """Where everything is that outlives a process: ``$KALAVAI_HOME``, or what the system has for such things."""
    chosen = os.environ.get("KALAVAI_HOME")
    return Path(chosen).expanduser() if chosen else user_data_path("kalavai", appauthor=False)


def hosted(name: str) -> Path:
    """What the pool of this name needs that was started on this machine: its authority and its members."""
    return data_directory() / "pools" / name


def joined(pool_id: str, role: str) -> Path:
    """What this machine needs as a member of a pool: who it is there, and what it lends."""
    return data_directory() / "joined" / f"{pool_id}-{role}"


def private_directory(path: Path) -> Path:
    """Make this directory, and those above it, where they are not there; nobody else may look into it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold this lock, for as long as it takes: no other process of this user does what comes now."""
    # it may lie where others can write too: no link of theirs is followed
    file = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def check_writable(path: Path) -> None:
    """Raise OSError where nothing can be written into this directory, before something is done that has to be."""
    write_private(path / ".room", "x" * _ROOM_BYTES)
    (path / ".room").unlink()


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read. Whoever reads it finds the old text or the new one, never a part."""
    private_directory(path.parent)
    # mkstemp's files are 0600 from their first moment
    file, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(file, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read_private(path: Path) -> str:
    """The text of such a file. Raises OSError where there is none, and ValueError for one that can be none of ours."""
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is larger than anything that is written there")
    return content.decode()
