"""Bits per weight as files of real models have them, and what they cost in quality. Nominal bits are never used."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from kalavai_nb.errors import ModelError
from kalavai_nb.planner.shape import ModelShape

BITS_SOURCE = "llama.cpp tools/quantize, Llama-3.1-8B"
_LLAMA3 = "Llama-3-70B, llama.cpp PR 6745"
_LLAMA2 = "Llama-2-70B, llama.cpp"


@dataclass(frozen=True)
class Quality:
    """By how much perplexity rises (0.01 is 1 %), and on which model who measured it."""

    rise: float
    source: str


@dataclass(frozen=True)
class Quant:
    """A way to hold weights. ``bits`` is the mean over all tensors of a model, scales included."""

    name: str
    bits: float
    bits_source: str = BITS_SOURCE
    qualities: tuple[Quality, ...] = ()

    def bytes(self, params: int) -> int:
        """What so many parameters take."""
        return round(params * self.bits / 8)


def _k(llama3: float, llama2: float | None = None) -> tuple[Quality, ...]:
    figures = ((llama3, _LLAMA3), (llama2, _LLAMA2))
    return tuple(Quality(rise / 100, source) for rise, source in figures if rise is not None)


QUANTS: tuple[Quant, ...] = (
    Quant("bf16", 16.0, "by definition"),
    Quant("int8", 8.5008, f"as Q8_0, {BITS_SOURCE}", _k(0.03)),
    Quant("Q6_K", 6.5633, BITS_SOURCE, _k(0.47, 0.16)),
    Quant("Q5_K_M", 5.7036, BITS_SOURCE, _k(1.23, 0.40)),
    Quant("Q4_K_M", 4.8944, BITS_SOURCE, _k(4.83, 1.20)),
    # the table of Llama-3.1-8B has none
    Quant("Q3_K_M", 3.91, "Llama-2-7B", _k(18.75, 4.72)),
    Quant("Q2_K", 3.1593, BITS_SOURCE, _k(68.7, 8.82)),
)
OTHERS: tuple[Quant, ...] = (
    Quant("fp32", 32.0, "by definition"),
    Quant("Q5_K_S", 5.5704, BITS_SOURCE, (Quality(0.0050, _LLAMA2),)),
    Quant("Q4_K_S", 4.6672, BITS_SOURCE, (Quality(0.0157, _LLAMA2),)),
    Quant("Q3_K_S", 3.6429, BITS_SOURCE, (Quality(0.0789, _LLAMA2),)),
)
_SAME = {"f16": "bf16", "fp16": "bf16", "float16": "bf16", "bfloat16": "bf16", "float32": "fp32", "f32": "fp32"}
_SAME |= {"q8_0": "int8", "8bit": "int8", "int4": "q4_k_m", "4bit": "q4_k_m", "q4": "q4_k_m"}
_BY_NAME = {quant.name.lower(): quant for quant in (*QUANTS, *OTHERS)}


def plain_name(name: str) -> str | None:
    """The name by which it is listed, of any that it is known by; None for one that is not known."""
    lower = name.lower().replace("-", "_")
    found = _BY_NAME.get(_SAME.get(lower, lower))
    return found.name if found else None


def native(shape: ModelShape) -> Quant:
    """The model as it is."""
    return _BY_NAME["fp32" if shape.dtype == "float32" else "bf16"]


def read_quant(quant: Quant | str | None, shape: ModelShape) -> Quant:
    """The `Quant` of a name; None is the model's own dtype. Raises ModelError with the nearest name."""
    if quant is None:
        return native(shape)
    if isinstance(quant, Quant):
        return quant
    if (name := plain_name(str(quant))) is not None:
        return _BY_NAME[name.lower()]
    names = [quant.name for quant in (*QUANTS, *OTHERS)] + ["int4", "q8_0"]
    near = difflib.get_close_matches(str(quant), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"there is no quantisation {quant!r}.{hint} There is: {', '.join(names)}.")
