"""The header of a GGUF file, read once: what it says of itself, and where its tensors lie.

The library `gguf` makes an array of every token of the vocabulary while it parses, which takes seconds; here they are
stepped over. `GgufFile.write_outline` writes a file with the same metadata and tensors, but no vocabulary and a hole
for data, for readers that would otherwise spend those seconds.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kalavai_nb.errors import ModelError

VERSIONS = (2, 3)
STRING, ARRAY, UINT32 = 8, 9, 4
# metadata types of one size: how struct names them
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
# what the vocabulary shrinks to in an outline
OUTLINE_TOKENS = 2


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file. ``shape`` is in torch's order, ``kind`` is ggml's number of its type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    length: int


@dataclass(frozen=True)
class Entry:
    """One key of the metadata. ``value`` is a number or text; of an array, how many elements it has."""

    key: str
    value: Any
    kind: int
    element_kind: int
    start: int
    end: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file without its data. ``header`` is everything before the data."""

    path: Path
    size_bytes: int
    version: int
    header: bytes
    entries: tuple[Entry, ...]
    tensors: tuple[GgufTensor, ...]
    table_start: int
    table_end: int
    alignment: int

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header. Raises ModelError for what is no GGUF file, or one that is cut off."""
        size_bytes = path.stat().st_size
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = _parse(path, size_bytes, content)
        except (struct.error, ValueError, KeyError, IndexError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path} is no GGUF file that can be read ({error}). Download it again.") from error
        needed = max((tensor.offset + tensor.length for tensor in found.tensors), default=0)
        if needed > size_bytes:
            raise ModelError(f"{path} is cut off: its tensors need {needed} bytes, it has {size_bytes}. Get it again.")
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata; of an array, how many elements it has."""
        return next((entry.value for entry in self.entries if entry.key == key), default)

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture", ""))

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the file lists."""
        count: int | None = self.get("tokenizer.ggml.tokens")
        return count

    def write_outline(self, path: Path) -> None:
        """Write a file that says the same but for the vocabulary, whose size it says as a number, and has no data."""
        entries = [self._outlined(entry) for entry in self.entries]
        key = f"{self.architecture}.vocab_size"
        if self.vocabulary and self.get(key) is None:
            entries.append(_text(key) + struct.pack("<II", UINT32, self.vocabulary))
        beginning = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(entries))
        header = beginning + b"".join(entries) + self.header[self.table_start : self.table_end]
        header += bytes(-len(header) % self.alignment)
        with open(path, "wb") as out:
            out.write(header)
            out.truncate(len(header) + self.size_bytes - len(self.header))

    def _outlined(self, entry: Entry) -> bytes:
        if entry.kind != ARRAY or not entry.key.startswith("tokenizer.") or entry.value <= OUTLINE_TOKENS:
            return self.header[entry.start : entry.end]
        width = 8 if entry.element_kind == STRING else struct.calcsize(_FORMATS[entry.element_kind])
        shape = struct.pack("<IIQ", ARRAY, entry.element_kind, OUTLINE_TOKENS)
        return _text(entry.key) + shape + bytes(width * OUTLINE_TOKENS)


def _parse(path: Path, size_bytes: int, content: mmap.mmap) -> GgufFile:
    if content[:4] != b"GGUF":
        raise ModelError(f"{path} does not begin as a GGUF file does. Download it again, or name another model.")
    version, tensor_count, entry_count = struct.unpack_from("<IQQ", content, 4)
    if version not in VERSIONS:
        raise ModelError(f"{path} is of GGUF version {version}; versions 2 and 3 can be read. Convert it again.")
    entries, position = [], 24
    for _ in range(entry_count):
        entries.append(_entry(content, position))
        position = entries[-1].end
    table_start = position
    rows = []
    for _ in range(tensor_count):
        row, position = _tensor_row(content, position)
        rows.append(row)
    alignment = next((entry.value for entry in entries if entry.key == "general.alignment"), 32)
    data_start = -(-position // alignment) * alignment
    tensors = tuple(_tensors(rows, data_start, path))
    header = content[:data_start]
    return GgufFile(path, size_bytes, version, header, tuple(entries), tensors, table_start, position, alignment)


def _entry(content: mmap.mmap, start: int) -> Entry:
    key, position = _string(content, start)
    (kind,) = struct.unpack_from("<I", content, position)
    value, element_kind, end = _value(content, position + 4, kind)
    return Entry(key, value, kind, element_kind, start, end)


def _value(content: mmap.mmap, position: int, kind: int) -> tuple[Any, int, int]:
    """(value, kind of the elements of an array, where the next begins)"""
    if kind == STRING:
        text, end = _string(content, position)
        return text, 0, end
    if kind != ARRAY:
        (value,) = struct.unpack_from(_FORMATS[kind], content, position)
        return value, 0, position + struct.calcsize(_FORMATS[kind])
    element_kind, count = struct.unpack_from("<IQ", content, position)
    position += 12
    if element_kind != STRING:
        return count, element_kind, position + count * struct.calcsize(_FORMATS[element_kind])
    for _ in range(count):
        position += 8 + struct.unpack_from("<Q", content, position)[0]
    return count, element_kind, position


def _tensor_row(content: mmap.mmap, position: int) -> tuple[tuple[str, tuple[int, ...], int, int], int]:
    """((name, shape, kind, offset in the data), where the next begins)"""
    name, position = _string(content, position)
    (dimensions,) = struct.unpack_from("<I", content, position)
    sizes = struct.unpack_from(f"<{dimensions}Q", content, position + 4)
    kind, offset = struct.unpack_from("<IQ", content, position + 4 + 8 * dimensions)
    # ggml has the dimension that moves fastest first
    return (name, tuple(reversed(sizes)), kind, offset), position + 16 + 8 * dimensions


def _tensors(rows: list[tuple[str, tuple[int, ...], int, int]], data_start: int, path: Path) -> Iterator[GgufTensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, shape, kind, offset in rows:
        try:
            elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ModelError(
                f"{path} has {name} in a format that is not known here (ggml type {kind}). "
                "Upgrade the package gguf, or take the model in another quantisation."
            ) from None
        yield GgufTensor(name, shape, kind, data_start + offset, prod(shape) // elements * block_bytes)


def _string(content: mmap.mmap, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", content, position)
    end = position + 8 + length
    return content[position + 8 : end].decode(), end


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
