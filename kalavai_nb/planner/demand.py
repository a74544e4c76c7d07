"""What a run of layers needs of the device that holds it: bytes, and time for a token."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from kalavai_nb.planner.quants import Quant
from kalavai_nb.planner.shape import ModelShape

# long prompts are prefilled in pieces of so many tokens
PIECE_TOKENS = 512
# tensors of one token that are alive at once in a layer, in hidden sizes: the stream, queries, keys, values, an MLP's
ACTIVATIONS = 16


@dataclass(frozen=True)
class Room:
    """What a stage takes. ``headroom_bytes`` is what activations and logits need while it runs."""

    weights_bytes: int
    kv_bytes: int
    headroom_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.headroom_bytes


class Demand:
    """A model at one quantisation, cut anywhere.

    Work is counted in parameters that a token meets, and is exact in integers, so that equal stages are equal. With
    ``overhead`` above 1, weights count so many times over where cache and activations take less than that.
    """

    def __init__(self, shape: ModelShape, quant: Quant, max_len: int, max_batch: int, overhead: float = 1.0) -> None:
        self.shape, self.quant, self.overhead = shape, quant, overhead
        self._for = (max_len, max_batch)
        self.layers = len(shape.layers)
        layers = shape.layers
        self._params = _sums(layer.params for layer in layers)
        self._weights = _sums(quant.bytes(layer.params) for layer in layers)
        self._kv = _sums(max_batch * layer.kv_bytes(max_len) for layer in layers)
        self._both = [weights + kv for weights, kv in zip(self._weights, self._kv, strict=True)]
        self._work = _sums(layer.active_params for layer in layers)
        self.head_work = shape.head_params
        self._first = quant.bytes(shape.embedding_params)
        self._last = quant.bytes(shape.head_params + shape.norm_params)
        self._tied = quant.bytes(shape.head_params) if shape.tied else 0
        activations = max_batch * min(PIECE_TOKENS, max_len) * ACTIVATIONS * shape.hidden_size * shape.dtype_bytes
        self._headroom, self._logits = activations, max_batch * shape.vocabulary * 4 * 2

    def at(self, quant: Quant) -> Demand:
        """The same at another quantisation."""
        return Demand(self.shape, quant, *self._for, self.overhead)

    def room(self, start: int, end: int) -> Room:
        """What the stage [start, end) takes, with the ends of the model that go with it."""
        weights = self._weights[end] - self._weights[start] + self._ends(start == 0, end == self.layers)
        headroom = self._headroom + (self._logits if end == self.layers else 0)
        return Room(weights, self._kv[end] - self._kv[start], headroom)

    def fits(self, start: int, end: int, usable_bytes: int) -> bool:
        """Whether the stage has room in so many bytes."""
        room = self.room(start, end)
        return room.total_bytes <= usable_bytes and room.weights_bytes <= usable_bytes / self.overhead

    def work(self, start: int, end: int) -> int:
        """Parameters that a token meets in [start, end), the head's with the last layer."""
        return self._work[end] - self._work[start] + (self.head_work if end == self.layers else 0)

    @property
    def mean_work(self) -> float:
        """Of one layer."""
        return self._work[-1] / self.layers

    def reach(self, start: int, usable_bytes: int, most_work: int) -> int:
        """The farthest end, short of the last layer, of a stage from ``start`` that fits; ``start`` for none."""
        ends = self._first if start == 0 else 0
        by_total = bisect_right(self._both, self._both[start] + usable_bytes - ends - self._headroom)
        by_weights = bisect_right(self._weights, self._weights[start] + usable_bytes / self.overhead - ends)
        by_work = bisect_right(self._work, self._work[start] + most_work)
        return max(start, min(by_total, by_weights, by_work, self.layers) - 1)

    def _ends(self, first: bool, last: bool) -> int:
        return (self._first if first else 0) + (self._last if last else 0) - (self._tied if first and last else 0)


def _sums(values: Iterable[int]) -> list[int]:
    return list(accumulate(values, initial=0))
