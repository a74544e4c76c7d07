"""A directory of one's own, held open, and files in it that are read only if they can be nobody's trick.

All is done relative to the open directory, so that nothing on the way can be exchanged between a check and its use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from jupyter_core.paths import jupyter_runtime_dir

DIRECTORY_MODE, FILE_MODE = 0o700, 0o600


def directory() -> Path:
    """Where this user's pools are made known. It need not be there."""
    return Path(jupyter_runtime_dir()) / "kalavai_nb"


class Signature(NamedTuple):
    """What changes when a file is written anew: each writing makes a new file and gives it the old one's name."""

    inode: int
    mtime_ns: int
    size_bytes: int

    @classmethod
    def of(cls, found: os.stat_result) -> Signature:
        return cls(found.st_ino, found.st_mtime_ns, found.st_size)


class Folder:
    """An open directory that belongs to this user, and that nobody else can write to.

    Opening one raises FileNotFoundError where there is none, and PermissionError with a sentence where it is a link,
    another user's, or open to others.
    """

    def __init__(self, path: Path | str, within: Folder | None = None) -> None:
        self._fd = -1
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, dir_fd=within._fd if within else None)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise PermissionError(
                f"{str(path)!r} has to be a directory, and no link to one ({error.strerror})"
            ) from None
        if trouble := _not_private(os.fstat(self._fd)):
            self.close()
            raise PermissionError(f"the directory {str(path)!r} {trouble}: remove it, and it is made again")

    @classmethod
    def made(cls, path: Path) -> Folder:
        """The same; made, with those that it is in, where there is none."""
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=DIRECTORY_MODE)
        return cls(path)

    def inner(self, name: str) -> Folder:
        """A directory in this one."""
        return Folder(name, self)

    def inner_made(self, name: str) -> Folder:
        """The same; made where there is none."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=self._fd)
        return self.inner(name)

    def names(self) -> list[str]:
        """All that is in it."""
        return os.listdir(self._fd)

    def sign(self, name: str) -> Signature:
        """What changes when this file is written anew. Raises PermissionError for what is no file of this user."""
        found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        _check_file(found)
        return Signature.of(found)

    def read(self, name: str, most_bytes: int) -> tuple[bytes, Signature]:
        """All of a file. Raises PermissionError, with what is wrong with it, where it is no file of this user."""
        self.sign(name)
        # should it have become a pipe since: opening that does not wait for somebody to write
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            _check_file(found)
            content = file.read(most_bytes + 1) if found.st_size <= most_bytes else b""
        if found.st_size > most_bytes or len(content) > most_bytes:
            raise PermissionError(f"is larger than {most_bytes >> 10} KiB")
        return content, Signature.of(found)

    def write(self, name: str, content: bytes) -> None:
        """A file with this content and name: there is none of it, or all."""
        passing = f".{name}.{secrets.token_hex(8)}"
        fd = os.open(
            passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=self._fd
        )
        try:
            with open(fd, "wb") as file:
                file.write(content)
            os.replace(passing, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            self.remove(passing)
            raise

    def remove(self, name: str) -> bool:
        """Take a file or a link away; whether it was there, and could be."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except OSError:
            return False
        return True

    def remove_inner(self, name: str) -> None:
        """Take a directory and the files in it away, as far as that goes."""
        with contextlib.suppress(OSError):
            with self.inner(name) as inner:
                for each in inner.names():
                    inner.remove(each)
            os.rmdir(name, dir_fd=self._fd)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _not_private(found: os.stat_result) -> str:
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others"
    return ""


def _check_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PermissionError("is no plain file")
    if found.st_uid != os.geteuid():
        raise PermissionError("belongs to another user")
