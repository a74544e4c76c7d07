"""The tensors of a GGUF file, one after the other, written into one safetensors file.

Each is read, unpacked, put into torch's layout, rounded and written at its place before the next, so a model of any
size takes the memory of its largest layer's largest tensor, a few times over. Vocabularies, larger yet, go in slices.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from kalavai_nb.errors import ModelError
from kalavai_nb.weights.gguf_file import GgufFile, GgufTensor
from kalavai_nb.weights.gguf_names import Plan, Shape
from kalavai_nb.weights.headers import tensor_places

# torch's names of dtypes: safetensors' names of them, and bytes per element
DTYPES = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
# one row for each token, the same on both sides: no processor changes them
VOCABULARIES = ("token_embd.weight", "output.weight")
SLICE_BYTES = 16 << 20


def header_of(shapes: dict[str, Shape], dtype: str) -> bytes:
    """The header of a safetensors file with these tensors, one after the other."""
    code, width = DTYPES[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + prod(shape) * width
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    source: GgufFile, plan: Plan, path: Path, dtype: str, on_progress: Callable[[int, int], None]
) -> None:
    """Write the file. ``on_progress`` hears how many bytes of the source are done, of how many.

    Raises ModelError where a tensor comes out in another shape than the model has.
    """
    header = header_of(plan.shapes, dtype)
    offsets = {name: place.range.offset for name, place in tensor_places(header, path.name)}
    # tensors of the file that are yet to come, by what they are part of: experts have gate and up in one
    pending = Counter(target for tensor in source.tensors if (target := plan.target(tensor.name)))
    total_bytes = sum(tensor.length for tensor in source.tensors)
    done_bytes = 0
    parts: dict[str, Any] = {}
    with open(source.path, "rb") as file, open(path, "wb") as out:
        out.write(header)
        for tensor in source.tensors:
            target = plan.target(tensor.name)
            if target in offsets and tensor.name in VOCABULARIES:
                out.seek(offsets[target])
                for rows in slices(tensor):
                    shape = (rows.shape[0], *plan.shapes[target][1:])
                    _write(out, target, _values(file, rows), shape, dtype)
            elif target in offsets:
                parts.update(_unpacked(file, tensor, plan, parts))
                pending[target] -= 1
                if not pending[target]:
                    out.seek(offsets[target])
                    _write(out, target, parts.pop(target), plan.shapes[target], dtype)
            done_bytes += tensor.length
            on_progress(done_bytes, total_bytes)


def _unpacked(file: BinaryIO, tensor: GgufTensor, plan: Plan, parts: dict[str, Any]) -> dict[str, Any]:
    """What a tensor of the file gives, by the model's names, as float32; ``parts`` has what is begun."""
    parsed = {"tensors": dict(parts)}
    result = plan.processor.process(
        weights=_values(file, tensor), name=tensor.name, tensor_key_mapping=plan.targets, parsed_parameters=parsed
    )
    if result.name in plan.targets:
        parsed["tensors"][plan.targets[result.name]] = result.weights
    return parsed["tensors"]


def slices(tensor: GgufTensor) -> Iterator[GgufTensor]:
    """Consecutive rows of a tensor, as tensors of some `SLICE_BYTES` when unpacked."""
    count = tensor.shape[0]
    row_bytes = tensor.length // count
    at_once = max(1, SLICE_BYTES // (4 * prod(tensor.shape[1:])))
    for start in range(0, count, at_once):
        rows = min(at_once, count - start)
        shape = (rows, *tensor.shape[1:])
        yield replace(tensor, shape=shape, offset=tensor.offset + start * row_bytes, length=rows * row_bytes)


def _values(file: BinaryIO, tensor: GgufTensor) -> Any:
    """A tensor of the file, unpacked: an array of float32."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

    kind = GGMLQuantizationType(tensor.kind)
    file.seek(tensor.offset)
    packed = np.fromfile(file, np.uint8, tensor.length)
    return dequantize(packed.reshape(quant_shape_to_byte_shape(tensor.shape, kind)), kind)


def _write(out: BinaryIO, name: str, values: Any, shape: Shape, dtype: str) -> None:
    import torch

    tensor = torch.as_tensor(values)
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"{name} is {tuple(tensor.shape)} in the GGUF file, but {shape} in the model that transformers makes "
            "of it. Take the model in Hugging Face form."
        )
    rounded = tensor.to(getattr(torch, dtype)).contiguous()
    content: Any = rounded.flatten().view(torch.uint8).numpy()
    out.write(memoryview(content))
