"""Weights held in few bits, which layers use as if they were whole.

A `Packed` is a tensor with the shape, dtype and device of the weight that it stands for, so that the `forward` of
every model stays as it is. What models do with weights works on the packed form: ``linear`` unpacks at most a piece of
it at a time, ``embedding`` only the rows that are asked for, and an index into the experts of a mixture gives that
expert, still packed. Any other operation sees the weight unpacked: right, for the time and the memory of one weight.

The numbers are made and read by bitsandbytes, because it runs on CPUs and on all CUDA GPUs that torch runs on,
multiplies 4-bit weights there without unpacking them, and asks for no particular dtype. Activations are not touched:
the library's own layer for int8 casts them to float16, which some models overflow, and rounds them to 8 bits as well.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.nn import functional
from torch.utils import _pytree

from kalavai_nb.errors import MissingExtra, ModelError

# Weights that are packed, or unpacked, at once. It bounds what comes on top of the packed form: to pack 4 bits on a CPU
# takes 80 bytes a weight in the library, and the head of a model has hundreds of millions of weights. CPUs unpack into
# their caches: the head of SmolLM2 (28 million weights) takes 8 ms in pieces of 2^20 and 48 ms in pieces of 2^24.
PACKED_AT_ONCE = 1 << 20
UNPACKED_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}


@functools.cache
def bitsandbytes() -> Any:
    """The library. It is loaded when the first weight is packed: it looks for GPUs as it loads."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that it cannot download a kernel for some CPUs, which is not used here
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtra(
            "A quantised model needs bitsandbytes, which is not installed here: `pip install kalavai-nb[models]`, "
            "or load the model with quant=None."
        ) from error
    finally:
        logger.setLevel(level)


class Packed(torch.Tensor):
    """A weight [..., K] as ``codes`` [R, bytes of a row] and ``scales`` [R, scales of a row]; R is all of ``...``."""

    codes: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def __new__(
        cls: type[Packed], codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, dtype: torch.dtype
    ) -> Packed:
        make: Any = torch.Tensor._make_wrapper_subclass
        packed: Packed = make(cls, shape, dtype=dtype, device=codes.device)
        packed.codes, packed.scales = codes, scales
        return packed

    def __init__(self, *_: Any) -> None:
        """All is set in ``__new__``, as with every tensor."""

    @classmethod
    def of(cls, weight: torch.Tensor) -> Packed:
        """``weight`` packed, on its device."""
        rows = weight.detach().reshape(-1, weight.shape[-1])
        pieces = [cls._pack(piece.contiguous()) for piece in torch.split(rows, _rows_of(PACKED_AT_ONCE, rows.shape[1]))]
        codes, scales = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return cls(codes, scales, weight.shape, weight.dtype)

    @classmethod
    def _pack(cls, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of ``rows`` [R, K]."""
        raise NotImplementedError

    def _unpack(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The rows [R, K] that have these codes and scales, in the dtype of the weight."""
        raise NotImplementedError

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., K] times this weight [R, K] transposed."""
        return functional.linear(x, self._unpack(self.codes, self.scales).to(x.dtype))

    def dense(self) -> torch.Tensor:
        """The weight unpacked."""
        return self._unpack(self.codes, self.scales).reshape(self.shape)

    def rows(self, start: int, end: int, shape: tuple[int, ...] | None = None) -> Packed:
        """Rows [start, end), still packed, on the same storage; as ``shape`` where that is given."""
        size = torch.Size(shape or (end - start, self.shape[-1]))
        return type(self)(self.codes[start:end], self.scales[start:end], size, self.dtype)

    def pieces(self) -> Iterator[Packed]:
        """All rows, in pieces that are small enough to be unpacked."""
        weights = UNPACKED_AT_ONCE.get(self.device.type, UNPACKED_AT_ONCE["cuda"])
        count, step = len(self.codes), _rows_of(weights, self.shape[-1])
        for start in range(0, count, step):
            yield self.rows(start, min(start + step, count))

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Torch's way to ask a tensor what tensors it is made of: its bytes are theirs."""
        return ["codes", "scales"], None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None and (result := handler(*args, **(kwargs or {}))) is not NotImplemented:
            return result
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has the operator for its self
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        whole = functools.partial(_pytree.tree_map_only, Packed, Packed.dense)
        with torch.inference_mode(False), torch.no_grad():  # a view of a Packed must not be an inference tensor
            return func(*whole(args), **whole(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"


class Int8(Packed):
    """One scale for each row, weights as -127 to 127."""

    @classmethod
    def _pack(cls, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, largest, _ = bitsandbytes().functional.int8_vectorwise_quant(rows.to(torch.float16))
        return codes, largest.reshape(-1, 1)

    def _unpack(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = bitsandbytes().functional.int8_vectorwise_dequant(codes, scales)
        return whole.to(self.dtype)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float16:
            return super()._product(x)  # sums of codes overflow it
        # codes are exact in bfloat16, codes times scales are not
        return (functional.linear(x, self.codes.to(x.dtype)) * (self.scales.reshape(-1) / 127)).to(x.dtype)


class Int4(Packed):
    """Blocks of weights with one scale each; a weight is one of the sixteen values of NF4, two in a byte."""

    BLOCK: ClassVar[int] = 32

    @classmethod
    def _pack(cls, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, state = bitsandbytes().functional.quantize_4bit(rows, blocksize=cls.BLOCK, quant_type="nf4")
        return codes.reshape(len(rows), -1), state.absmax.reshape(len(rows), -1)

    def _unpack(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        state = self._state(scales)
        whole: torch.Tensor = bitsandbytes().functional.dequantize_4bit(codes.reshape(-1, 1), state)
        return whole

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        state = self._state(self.scales)
        product: torch.Tensor = bitsandbytes().matmul_4bit(x, self.codes.reshape(-1, 1), quant_state=state)
        return product

    def _state(self, scales: torch.Tensor) -> Any:
        """What the library wants to know of rows that have these scales."""
        library = bitsandbytes().functional
        return library.QuantState(
            absmax=scales.reshape(-1),
            shape=torch.Size((len(scales), self.shape[-1])),
            code=_nf4(scales.device),
            blocksize=self.BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )


@functools.cache
def _nf4(device: torch.device) -> torch.Tensor:
    values: torch.Tensor = bitsandbytes().functional.get_4bit_type("nf4", device=device)
    return values


def _rows_of(weights: int, length: int) -> int:
    """How many rows of ``length`` come to about ``weights``; at least one."""
    return max(1, weights // length)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    if not isinstance(weight, Packed) or isinstance(x, Packed):
        return NotImplemented
    products = [piece._product(x) for piece in weight.pieces()]
    product = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
    return product if bias is None else product + bias


def _embedding(ids: torch.Tensor, weight: torch.Tensor, padding_idx: Any = None, *_: Any, **__: Any) -> Any:
    if not isinstance(weight, Packed):
        return NotImplemented
    flat = ids.reshape(-1)
    return weight._unpack(weight.codes[flat], weight.scales[flat]).reshape(*ids.shape, weight.shape[-1])


def _item(weight: torch.Tensor, index: Any) -> Any:
    number = index.item() if isinstance(index, torch.Tensor) and index.ndim == 0 else index
    if not isinstance(weight, Packed) or weight.ndim != 3 or type(number) is not int:
        return NotImplemented
    count = weight.shape[1]
    expert = range(weight.shape[0])[number]
    return weight.rows(expert * count, (expert + 1) * count)


def _same(weight: Packed, *_: Any) -> Packed:
    """As a new tensor on the same storage: what torch asks for to make a parameter of it."""
    return type(weight)(weight.codes, weight.scales, weight.shape, weight.dtype)


def _set(weight: Packed, value: torch.Tensor) -> None:
    """What ``module.to`` does to a weight, with itself where nothing is to be done."""
    if getattr(value, "codes", None) is not weight.codes:
        raise ModelError(
            f"A quantised weight stays {weight.dtype} on {weight.device}, but was to become {value.dtype} on "
            f"{value.device}. Move the model first, then quantise it."
        )


_HANDLERS: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.Tensor.__getitem__: _item,
    torch.Tensor.detach: _same,
    torch.Tensor.data.__set__: _set,  # type: ignore[attr-defined]  # the stub has what it gives, not the descriptor
}
