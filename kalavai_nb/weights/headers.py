"""The header of a safetensors file: 8 bytes that say how long it is, JSON that says where each tensor lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kalavai_nb.errors import ModelError
from kalavai_nb.weights.ranges import Range

# what the safetensors library itself accepts
LARGEST_HEADER_BYTES = 100_000_000
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorPlace:
    """Where the bytes of a tensor are, from the beginning of their file, and what they mean."""

    range: Range
    dtype: str
    shape: tuple[int, ...]


def header_bytes(beginning: bytes, file: str) -> int:
    """How long the header is, its 8 bytes of length included. Raises ModelError for what is no safetensors file."""
    if beginning.startswith(LFS_POINTER):
        raise ModelError(
            f"{file} is a pointer of Git LFS, not the weights it stands for. Run `git lfs pull` in its directory."
        )
    length = int.from_bytes(beginning[:8], "little") if len(beginning) >= 8 else 0
    if not 2 <= length <= LARGEST_HEADER_BYTES:
        raise ModelError(f"{file} is no safetensors file: it has no header. Get it again, or name another model.")
    return length + 8


def read_header(path: Path) -> bytes:
    """The header of a file, as it is. Raises ModelError for what is no safetensors file, or one that is cut off."""
    with open(path, "rb") as file:
        beginning = file.read(max(8, len(LFS_POINTER)))
        length = header_bytes(beginning, str(path))
        header = beginning[:length] + file.read(max(0, length - len(beginning)))
    _check_size(header, path.stat().st_size, str(path))
    return header


def tensor_places(header: bytes, file: str) -> Iterator[tuple[str, TensorPlace]]:
    """The tensors that a header names. Raises ModelError for a header that is none."""
    try:
        entries = json.loads(header[8:])
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            start, end = map(int, entry["data_offsets"])
            if not 0 <= start <= end:
                raise ValueError(f"{name} lies from {start} to {end}")
            place = Range(file, len(header) + start, end - start)
            yield name, TensorPlace(place, str(entry["dtype"]), tuple(map(int, entry["shape"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the header of {file} cannot be read ({error}). Get the file again.") from error


def full_bytes(header: bytes, file: str) -> int:
    """How long the file with this header is when it is whole."""
    return max((place.range.end for _, place in tensor_places(header, file)), default=len(header))


def _check_size(header: bytes, size_bytes: int, file: str) -> None:
    cut = len(header) < header_bytes(header, file)
    needed = header_bytes(header, file) if cut else full_bytes(header, file)
    if cut or size_bytes < needed:
        raise ModelError(
            f"{file} is cut off: its header asks for {needed} bytes, it has {size_bytes}. Copy or download it again."
        )
