"""A dense model of a size, where its size is all that is known: with the proportions of the Llamas."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from kalavai_nb.planner.shape import LayerShape, ModelShape

VOCABULARY = 128_256
HEAD_SIZE = 128
KV_HEADS = 8
_SIZE = re.compile(r"(?:^|[\s_-])(\d+(?:\.\d+)?)\s*([bm])(?=$|[\s_-])", re.IGNORECASE)
_UNITS = {"b": 10**9, "m": 10**6}


@dataclass(frozen=True)
class _Llama:
    params: float
    layers: int
    hidden_size: int


# Llama 3.2 1B and 3B, 3.1 8B, Code Llama 34B, 3.1 70B and 405B; all but the first have 8 KV heads of 128
_LLAMAS = (
    _Llama(1e9, 16, 2048),
    _Llama(3e9, 28, 3072),
    _Llama(8e9, 32, 4096),
    _Llama(34e9, 48, 8192),
    _Llama(70e9, 80, 8192),
    _Llama(405e9, 126, 16384),
)


def size_of(text: str) -> int | None:
    """Parameters that a text such as "70B" or "Llama-3.1 70B" names; None where it names none."""
    found = _SIZE.search(text)
    return round(float(found[1]) * _UNITS[found[2].lower()]) if found else None


def llama_like(params: int) -> ModelShape:
    """A model of exactly so many parameters."""
    layers, hidden = _proportions(params)
    # small models tie their head, and a small vocabulary goes with a very small one
    tied = params < 4e9
    vocabulary = min(VOCABULARY, params // (4 * hidden))
    embedding = vocabulary * hidden
    rest = params - embedding - hidden - (0 if tied else embedding)
    # what does not divide is in the first layers
    own = [rest // layers + (at < rest % layers) for at in range(layers)]
    kv_bytes = 2 * KV_HEADS * (HEAD_SIZE if params >= 2e9 else HEAD_SIZE // 2) * 2
    return ModelShape(
        name=f"{params / 1e9:.4g}B" if params >= 1e9 else f"{params / 1e6:.4g}M",
        layers=tuple(LayerShape(size, size, kv_bytes) for size in own),
        embedding_params=embedding,
        norm_params=hidden,
        head_params=embedding,
        tied=tied,
        hidden_size=hidden,
        vocabulary=vocabulary,
        assumed=f"a dense model with the proportions of a Llama: {layers} layers, hidden size {hidden:,}, "
        f"{KV_HEADS} KV heads",
    )


def _proportions(params: int) -> tuple[int, int]:
    """Layers and hidden size, between the two Llamas around it; beyond them both grow with the cube root."""
    first, last = _LLAMAS[0], _LLAMAS[-1]
    if not first.params <= params <= last.params:
        nearest = first if params < first.params else last
        growth = (params / nearest.params) ** (1 / 3)
        return max(2, round(nearest.layers * growth)), _even(nearest.hidden_size * growth)
    below, above = next(pair for pair in pairwise(_LLAMAS) if params <= pair[1].params)
    part = math.log(params / below.params) / math.log(above.params / below.params)
    layers = below.layers * (above.layers / below.layers) ** part
    return round(layers), _even(below.hidden_size * (above.hidden_size / below.hidden_size) ** part)


def _even(hidden_size: float) -> int:
    return max(HEAD_SIZE, round(hidden_size / HEAD_SIZE) * HEAD_SIZE)
