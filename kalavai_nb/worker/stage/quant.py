"""Which weights of a model are packed, and what they weigh then.

Packed are the weights of linear layers and embeddings, the head, and the experts of a mixture, which are one tensor of
three dimensions: all but a thousandth of a model. Kept as they are: norms, biases, convolutions, routers (a choice of
experts that is off by a little is off by a lot), and rows that the format does not divide.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from kalavai_nb.errors import ModelError
from kalavai_nb.worker.stage.packed import Int4, Int8, Packed, bitsandbytes

_FORMATS: dict[str, type[Packed]] = {"int8": Int8, "int4": Int4}
QUANTS = tuple(_FORMATS)

# Bits of all weights of SmolLM2-135M in bfloat16, quantised, by its parameters:
# `python -m tests.benchmarks.quantised DIRECTORY` prints them with quality and speed.
_BITS_PER_WEIGHT = {"int8": 8.051, "int4": 5.003}

_ROUTERS = {"gate", "router", "shared_expert_gate"}


def check_quant(quant: str) -> None:
    """Raise, before anything is read, what `quantise` would raise: ModelError or MissingExtra."""
    _check_name(quant)
    bitsandbytes()


def quantise(model: nn.Module, quant: str) -> None:
    """Pack the weights of ``model`` in place, where they are; ``forward`` stays as it is.

    Layer by layer it comes to the same as all at once. What is packed, or still on meta, is passed over. A parameter
    that modules of ``model`` share stays shared; one that is shared with modules outside is theirs no more.
    """
    check_quant(quant)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner, name, weight in _weights(model):
        places.setdefault(id(weight), []).append((owner, name))
    for same in places.values():  # nothing else holds a weight here: each is gone before the next is packed
        owner, name = same[0]
        packed = nn.Parameter(_FORMATS[quant].of(owner.get_parameter(name)), requires_grad=False)
        for owner, name in same:
            owner._parameters[name] = packed


def bits_per_weight(quant: str) -> float:
    """Measured bits of a weight of a whole model, scales and all that stays unpacked included."""
    _check_name(quant)
    return _BITS_PER_WEIGHT[quant]


def weight_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers of ``model`` hold in memory. What is shared counts once, and meta nothing."""
    storages: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for part in _parts(tensor):
            if not part.is_meta:
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(storages.values())


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor


def _check_name(quant: str) -> None:
    if quant not in QUANTS:
        raise ModelError(f"quant={quant!r} is no quantisation that there is; take one of {', '.join(QUANTS)}, or None.")


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if path.rpartition(".")[2] not in _ROUTERS:
            for name, weight in module._parameters.items():
                if weight is not None and _is_packable(module, name, weight):
                    yield module, name, weight


def _is_packable(module: nn.Module, name: str, weight: nn.Parameter) -> bool:
    dense = not (isinstance(weight, Packed) or weight.is_meta) and weight.is_floating_point()
    matrix = isinstance(module, nn.Linear | nn.Embedding) and name == "weight"
    # a block must not reach into the next row: the library's kernels for CPUs read it wrongly then
    divides = weight.ndim >= 2 and min(weight.shape[-2:]) >= Int4.BLOCK and weight.shape[-1] % Int4.BLOCK == 0
    return dense and divides and (matrix or weight.ndim == 3)
