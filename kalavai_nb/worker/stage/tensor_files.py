"""Tensors in safetensors files, each read by itself into memory of our own.

No file is mapped: another process may change it while the model runs, and mapped pages would count as ours.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kalavai_nb.errors import ModelError

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file. ``tensor[...]`` reads it, as transformers asks of the lazy tensors it converts."""

    path: Path
    offset: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    on_read: Callable[[int], None] = field(default=lambda _: None, compare=False)

    def __getitem__(self, every: Any) -> torch.Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if self.bytes:
            into = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                while into:
                    count = file.readinto(into)
                    if not count:
                        raise ModelError(f"{self.path} ends in the middle of a tensor; copy the file again.")
                    into = into[count:]
            self.on_read(self.bytes)
        return tensor

    def get_shape(self) -> list[int]:
        return list(self.shape)


def tensors_in(directory: Path) -> dict[str, FileTensor]:
    """All tensors of a model by name, from the headers of its files alone."""
    if (directory / INDEX).exists():
        files = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
    else:
        files = sorted(path.name for path in directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory} has no safetensors files; save the model in that form (save_pretrained does).")
    return {name: tensor for file in files for name, tensor in _header(directory / file).items()}


def _header(path: Path) -> dict[str, FileTensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length) for name, entry in entries.items()}


def _tensor(path: Path, name: str, entry: dict[str, Any], data_offset: int) -> FileTensor:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ModelError(f"{name} in {path.name} is {entry['dtype']}, which cannot be read; take an unquantised model.")
    return FileTensor(path, data_offset + begin, end - begin, DTYPES[entry["dtype"]], tuple(entry["shape"]))
