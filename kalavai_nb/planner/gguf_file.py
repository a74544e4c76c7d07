"""The shape of a model in a GGUF file, from the names and sizes of its tensors."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from kalavai_nb.errors import ModelError
from kalavai_nb.planner.shape import LayerShape, ModelShape
from kalavai_nb.weights.gguf_file import GgufFile

_ARRAY = 9
_LAYER = re.compile(r"blk\.(\d+)\.")


def gguf_shape(path: Path) -> ModelShape:
    """Its tensors as they are once loaded, in bf16: a GGUF file is packed, a model that runs in torch is not."""
    file = GgufFile.open(path)
    sizes = {tensor.name: prod(tensor.shape) for tensor in file.tensors}
    layers = [0] * _number(file, "block_count")
    routed = [0] * len(layers)
    for name, size in sizes.items():
        # layers beyond those that are counted predict several tokens at once and are not loaded
        if (found := _LAYER.match(name)) and int(found[1]) < len(layers):
            layers[int(found[1])] += size
            routed[int(found[1])] += size if "_exps." in name else 0
    outside = {name: size for name, size in sizes.items() if not _LAYER.match(name)}
    norm = sum(size for name, size in outside.items() if name.startswith("output_norm."))
    head = outside.get("output.weight", 0)
    table = outside.get("token_embd.weight", 0)
    idle = 1 - _number(file, "expert_used_count", 1) / max(1, _number(file, "expert_count", 1))
    return ModelShape(
        name=path.name,
        layers=tuple(
            LayerShape(size, size - round(experts * idle), _kv_bytes(file))
            for size, experts in zip(layers, routed, strict=True)
        ),
        embedding_params=sum(outside.values()) - norm - head,
        norm_params=norm,
        head_params=head or table,
        tied=not head,
        hidden_size=_number(file, "embedding_length"),
        vocabulary=table // _number(file, "embedding_length"),
        assumed="weights are counted as loaded, in bf16; the KV cache is an upper estimate, without windows",
    )


def _kv_bytes(file: GgufFile) -> int:
    """Of one token and layer, in bf16. Where layers differ, all heads are counted."""
    heads = _number(file, "attention.head_count")
    usual = _number(file, "embedding_length") // heads
    sizes = _number(file, "attention.key_length", usual) + _number(file, "attention.value_length", usual)
    return _number(file, "attention.head_count_kv", heads) * sizes * 2


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    """A number of its metadata; ``default`` also where it has one for each layer."""
    name = f"{file.architecture}.{key}"
    value = next((entry.value for entry in file.entries if entry.key == name and entry.kind != _ARRAY), default)
    if value is None:
        raise ModelError(f"{file.path} does not say its {name}, so that it cannot be planned.")
    return int(value)
