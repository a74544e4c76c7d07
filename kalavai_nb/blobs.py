"""Values as content-addressed bytes: pickled once here, mapped copy-on-write there.

A value is pickled with protocol 5 and out-of-band buffers, so that the memory of an array is hashed and sent
as it is, never copied into a pickle first. On the far side the frames lie in one file per content, aligned,
and every rank of that machine maps the same file privately: one copy in memory for all of them, writable by each.

Functions that were defined in a notebook keep working in the namespace they come to: their globals are not carried
along in the pickle but reported (`Packed.uses`), so that the sender can send each of those names once, by itself.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import mmap
import os
import pickle
import secrets
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import cloudpickle

from kalavai_nb.places import alone

ALIGNMENT = 64
MAPPED_FROM_BYTES = 1 << 20
# the end of the name of a file that is not whole yet
PART = ".part"
STALE_SECONDS = 3600.0
_HELD = ".held"


@dataclass(frozen=True)
class Blob:
    """The name of some content: the digest of its frames, and the size of each."""

    digest: str
    sizes: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        """Size of the file that holds it."""
        return sum(map(_padded, self.sizes))


@dataclass
class Packed:
    """A pickled value: its blob, its frames, and the names of the notebook that its functions use."""

    blob: Blob
    frames: list[memoryview]
    uses: set[str]

    def renamed(self) -> Packed:
        """The same under a name of its own instead of its digest: dropping it drops no equal content of others."""
        return Packed(Blob(secrets.token_hex(16), self.blob.sizes), self.frames, self.uses)

    def content(self) -> bytes:
        """What a file that holds it would hold."""
        whole = bytearray(self.blob.total_bytes)
        for offset, piece, _ in self.pieces(1 << 26):
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)

    def pieces(self, piece_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
        """(offset, bytes, whether it is the last) that fill the file when all are written; padding stays a hole."""
        starts = [
            (frame, offset, start)
            for frame, offset in zip(self.frames, _offsets(self.blob.sizes), strict=True)
            for start in range(0, len(frame), piece_bytes)
        ]
        for number, (frame, offset, start) in enumerate(starts, 1):
            yield offset + start, bytes(frame[start : start + piece_bytes]), number == len(starts)


def pack(value: object, namespace: dict[str, Any] | None = None) -> Packed:
    """Pickle ``value``; functions whose globals are ``namespace`` will run in the namespace they are loaded into.

    Raises whatever the pickling of ``value`` raises.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickler = _Pickler(stream, namespace, buffers.append)
    pickler.dump(value)
    # the value itself, which is not copied either: on Python 3.13 a stream complains at its end of a view of its buffer
    frames = [memoryview(stream.getvalue()), *(buffer.raw() for buffer in buffers)]
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "big"))
        digest.update(frame)
    return Packed(Blob(digest.hexdigest(), tuple(map(len, frames))), frames, pickler.uses)


def load(path: str | os.PathLike[str], sizes: Iterable[int]) -> Any:
    """The value whose frames lie in ``path``. Large ones are mapped privately: writable, never written back."""
    sizes = tuple(sizes)
    with open(path, "rb") as file:
        if sum(sizes) < MAPPED_FROM_BYTES:
            return load_bytes(file.read(), sizes)
        return _load(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)), sizes)


def load_bytes(content: bytes | bytearray, sizes: Iterable[int]) -> Any:
    """The same for the content of such a file."""
    return _load(memoryview(content if isinstance(content, bytearray) else bytearray(content)), tuple(sizes))


def frames_of(content: memoryview, sizes: tuple[int, ...]) -> list[memoryview]:
    """The frames that lie in the content of such a file."""
    return [content[offset : offset + size] for offset, size in zip(_offsets(sizes), sizes, strict=True)]


def _load(content: memoryview, sizes: tuple[int, ...]) -> Any:
    frames = frames_of(content, sizes)
    return pickle.loads(frames[0], buffers=frames[1:])


class BlobStore:
    """The blobs of one machine, a file each, shared by all its workers and their children."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        if not digest.isalnum():
            raise ValueError(f"{digest!r} is no digest")
        return self.directory / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def write(self, digest: str, writer: str, offset: int, piece: bytes, total_bytes: int, last: bool) -> None:
        """Write one piece; the file appears under its digest when the last is there.

        Each ``writer`` fills a file of its own, so two notebooks that send the same content do not meet.
        """
        part = self.path(digest).with_suffix(f".{writer}{PART}")
        # what was taken away meanwhile, as nobody wrote to it for long, would be a file with holes
        with open(part, "r+b" if offset or part.exists() else "wb") as file:
            file.truncate(total_bytes)
            file.seek(offset)
            file.write(piece)
        if last:
            part.replace(self.path(digest))

    def keep(self, packed: Packed) -> None:
        """Write a value that was packed on this machine."""
        # of two containers with one store, each may have a process of the same number
        writer = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            for offset, piece, last in packed.pieces(1 << 26):
                self.write(packed.blob.digest, writer, offset, piece, packed.blob.total_bytes, last)
        except BaseException:
            self.path(packed.blob.digest).with_suffix(f".{writer}{PART}").unlink(missing_ok=True)
            raise

    def read(self, digest: str, offset: int, length: int) -> bytes:
        with open(self.path(digest), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def hold(self, digest: str, holder: str) -> bool:
        """Whether it is there. From now on its holder counts on it: another one's `drop` leaves it."""
        with alone(self._lock):
            self._held(digest, holder).touch(mode=0o600)
            return self.has(digest)

    def drop(self, digest: str, holder: str = "") -> None:
        """Forget a blob, unless others hold it. Ranks that have mapped it keep what they have."""
        path = self.path(digest)
        with alone(self._lock):
            if holder:
                self._held(digest, holder).unlink(missing_ok=True)
            if not any(self.directory.glob(f"{digest}.*{_HELD}")):
                path.unlink(missing_ok=True)

    def let_go(self, holder: str) -> None:
        """This holder counts on nothing any more: what nobody else counts on, of what it did, is forgotten."""
        with alone(self._lock):
            clear_parts(self.directory)
            held = [name.partition(".")[::2] for name in os.listdir(self.directory) if name.endswith(_HELD)]
            others = {digest for digest, whose in held if whose != f"{_of(holder)}{_HELD}"}
            for digest in {digest for digest, whose in held if whose == f"{_of(holder)}{_HELD}"}:
                self._held(digest, holder).unlink(missing_ok=True)
                if digest not in others:
                    self.path(digest).unlink(missing_ok=True)

    def _held(self, digest: str, holder: str) -> Path:
        return self.path(digest).with_suffix(f".{_of(holder)}{_HELD}")

    @property
    def _lock(self) -> Path:
        """No other process of this machine holds or drops anything while one has it."""
        return self.directory / ".lock"


def clear_parts(directory: Path, name: str = "") -> None:
    """Take away what was begun, under names that begin so, and not written to for long: whoever did so is gone."""
    for part in directory.glob(f"{glob.escape(name)}*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()


def _of(holder: str) -> str:
    """A holder's name as part of that of a file."""
    return hashlib.sha256(holder.encode()).hexdigest()[:16]


class _Pickler(cloudpickle.Pickler):
    """cloudpickle, except that functions of ``namespace`` are rebuilt on the far side's namespace."""

    def __init__(self, file: io.BytesIO, namespace: dict[str, Any] | None, keep_buffer: Callable[..., Any]) -> None:
        super().__init__(file, protocol=5, buffer_callback=keep_buffer)
        self.namespace = namespace
        self.uses: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        # pickled as it is, a tensor on a GPU could only be read where there is that very GPU
        torch = sys.modules.get("torch")
        if torch is not None and type(obj) is torch.Tensor and obj.device.type not in ("cpu", "meta"):
            return obj.detach().cpu().requires_grad_(obj.requires_grad).__reduce_ex__(5)
        reduced = super().reducer_override(obj)
        ours = isinstance(obj, types.FunctionType) and self.namespace is not None and obj.__globals__ is self.namespace
        if not ours or not isinstance(reduced, tuple) or len(reduced) != 6:
            return reduced
        # cloudpickle's own reduction of a function by value: (make, (code, globals, …), (state, {"__globals__": …}), …)
        make, arguments, (state, slots), *rest = reduced
        self.uses |= set(slots["__globals__"])
        slots = {**slots, "__globals__": {}}
        return make, (arguments[0], _NAMESPACE, *arguments[2:]), (state, slots), *rest


class _Namespace:
    """Stands for the interactive namespace of whichever process it is loaded in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return interactive_namespace, ()


_NAMESPACE = _Namespace()


def interactive_namespace() -> dict[str, Any]:
    """The user's namespace in this process: IPython's where there is one, else that of ``__main__``."""
    shell = None
    if "IPython" in sys.modules:
        # imported, not looked up: another thread may be in the middle of importing it
        from IPython import get_ipython

        shell = get_ipython()
    namespace: dict[str, Any] = shell.user_ns if shell else vars(sys.modules["__main__"])
    return namespace


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _offsets(sizes: Iterable[int]) -> list[int]:
    return [0, *accumulate(map(_padded, sizes))][:-1]
