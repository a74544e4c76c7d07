"""Where models lie on a machine: converted ones, and the mirrored parts of those that are elsewhere.

``~/.cache/kalavai-nb/models/<digest>/``; XDG_CACHE_HOME moves it, KALAVAI_CACHE replaces ``~/.cache/kalavai-nb``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kalavai_nb.errors import ModelError

LABEL = "kalavai.json"
GIB = 1 << 30


@dataclass(frozen=True)
class CachedModel:
    """One directory of the cache. ``kind``: "gguf" for a converted file, "mirror" for parts of a model of elsewhere."""

    name: str
    kind: str
    digest: str
    directory: Path
    size_bytes: int


def cache_root() -> Path:
    """The directory of this user's cache on this machine; it need not exist yet."""
    if chosen := os.environ.get("KALAVAI_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kalavai-nb"


def models_directory(root: Path | None = None) -> Path:
    """Where the models of a cache lie, made if need be. Raises ModelError where it cannot be."""
    directory = (root or cache_root()) / "models"
    with disk_errors(f"keep models in {directory}"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def cached_models(root: Path | None = None) -> list[CachedModel]:
    """What the cache holds, the largest first; sizes are what they take on the disk, so holes count nothing."""
    directory = (root or cache_root()) / "models"
    labels = directory.glob(f"[!.]*/{LABEL}") if directory.is_dir() else []
    return sorted(map(_cached, labels), key=lambda model: -model.size_bytes)


def label(directory: Path, name: str, kind: str) -> None:
    """Say whose model a directory of the cache is."""
    write_whole(directory / LABEL, json.dumps({"name": name, "kind": kind}))


def write_whole(path: Path, content: str) -> None:
    """Make a file say this, at once: another process may be reading it. The caller holds the lock of its directory."""
    if path.exists() and path.read_text() == content:
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(content)
    part.replace(path)


def require_room(directory: Path, needed_bytes: int, what: str) -> None:
    """Raises ModelError where the disk of this directory has no room for so much."""
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise ModelError(
            f"{what} needs {needed_bytes / GIB:.2f} GiB in {directory}, but its disk has {free_bytes / GIB:.2f} GiB "
            "free. Make room there, or set KALAVAI_CACHE to a directory of a larger disk."
        )


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """What the operating system refuses, as a sentence. ``doing`` completes "could not …"."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"could not {doing}: {error.strerror or error}. {_advice(error)}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that all processes of this machine, and threads of this one, know by this path."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Make room on that disk, or set KALAVAI_CACHE to a directory of a larger one."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Give this user the right to it, or set KALAVAI_CACHE to a directory where it may write."
    return "Check that the path is there and the disk is sound."


def _cached(label: Path) -> CachedModel:
    fields = json.loads(label.read_text())
    directory = label.parent
    size_bytes = sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())
    return CachedModel(fields["name"], fields["kind"], directory.name, directory, size_bytes)
