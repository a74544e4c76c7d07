"""What one layer remembers of several rows: keys and values by column, or states that have no columns.

transformers' own cache layers make a new tensor of all columns with every token (``torch.cat``), and their rows cannot
change. These write new columns in place, and can be made from rows of others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

SLACK_COLUMNS = 64


class Rows(NamedTuple):
    """Rows ``old`` of a source become rows ``new`` of what is made. Both are index tensors of equal length."""

    source: Any
    old: torch.Tensor
    new: torch.Tensor


class Columns:
    """One tensor [B, …, N, D] that grows by columns N at the right, in place.

    ``window``: how many columns it keeps for the next call, where that is limited.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self._buffer: torch.Tensor | None = None
        self._start = self._stop = 0

    @property
    def kept(self) -> torch.Tensor | None:
        """What is remembered, [B, …, N, D]: a view."""
        if self._buffer is None:
            return None
        return self._buffer.narrow(-2, self._start, self._stop - self._start)

    @property
    def bytes(self) -> int:
        return 0 if self._buffer is None else self._buffer.nbytes

    def append(self, new: torch.Tensor) -> torch.Tensor:
        """What was kept and ``new`` [B, …, n, D] at its right: a view that holds until the next call."""
        count = new.shape[-2]
        if self._buffer is None or self._stop + count > self._buffer.shape[-2]:
            self._grow(new, count)
        assert self._buffer is not None
        self._buffer.narrow(-2, self._stop, count).copy_(new)
        self._stop += count
        seen = self._buffer.narrow(-2, self._start, self._stop - self._start)
        if self.window is not None:
            self._start = max(self._start, self._stop - self.window)
        return seen

    def take(self, parts: Iterable[Rows], rows: int, columns: int) -> None:
        """Become ``rows`` rows of ``columns`` columns: those of the parts, right-aligned, and zeros elsewhere."""
        parts = [part for part in parts if part.source.kept is not None]
        if not parts:
            return
        columns = columns if self.window is None else min(columns, self.window)
        model = parts[0].source.kept
        self._allocate(model, rows, columns)
        assert self._buffer is not None
        self._buffer.narrow(-2, 0, columns).zero_()
        for source, old, new in parts:
            count = min(source.kept.shape[-2], columns)
            found = source.kept.narrow(-2, source.kept.shape[-2] - count, count).index_select(0, old)
            self._buffer.narrow(-2, columns - count, count).index_copy_(0, new, found)
        self._stop = columns

    def _grow(self, new: torch.Tensor, count: int) -> None:
        kept = self.kept
        columns = 0 if kept is None else kept.shape[-2]
        self._allocate(new, new.shape[0], columns + count)
        self._start, self._stop = 0, columns
        if kept is not None:
            assert self._buffer is not None
            self._buffer.narrow(-2, 0, columns).copy_(kept)

    def _allocate(self, like: torch.Tensor, rows: int, columns: int) -> None:
        slack = max(SLACK_COLUMNS, columns // 16)
        self._buffer = like.new_empty((rows, *like.shape[1:-2], columns + slack, like.shape[-1]))


class Growing(DynamicLayer):
    """Keys and values of full attention."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self._columns: tuple[Columns, ...] = (Columns(window), Columns(window))

    @classmethod
    def like(cls, layer: Any) -> Growing:
        return cls()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_initialized = True
        self.keys = self._columns[0].append(key_states)
        self.values = self._columns[1].append(value_states)
        return self.keys, self.values

    def take(self, parts: list[Rows], rows: int, columns: int) -> None:
        for at, mine in enumerate(self._columns):
            mine.take([Rows(p.source._columns[at], p.old, p.new) for p in parts], rows, columns)
        kept: tuple[Any, ...] = tuple(columns_of.kept for columns_of in self._columns)
        self.keys, self.values = kept[:2]
        self.is_initialized = self.keys is not None

    @property
    def bytes(self) -> int:
        return sum(columns.bytes for columns in self._columns)


class GrowingWindow(Growing):
    """Keys and values of attention that sees the last ``sliding_window`` columns only."""

    is_sliding = True

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window - 1)
        self.sliding_window = sliding_window

    @classmethod
    def like(cls, layer: Any) -> GrowingWindow:
        return cls(layer.sliding_window)


class Indexed(Growing):
    """Keys, values, and the keys by which a layer picks the columns it attends to."""

    def __init__(self) -> None:
        super().__init__()
        self._columns = (*self._columns, Columns())

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        return self._columns[2].append(indexer_key_states)


class States(LinearAttentionLayer):
    """States of linear attention and convolutions: one per row, whatever its length."""

    @classmethod
    def like(cls, layer: Any) -> Any:
        return cls(number_of_states=layer.number_of_states)

    def take(self, parts: list[Rows], rows: int, columns: int) -> None:
        for states, begun in (
            ("conv_states", "is_conv_states_initialized"),
            ("recurrent_states", "is_recurrent_states_initialized"),
        ):
            for at in range(self.number_of_states):
                known = [part for part in parts if getattr(part.source, states)[at] is not None]
                for part in known:
                    state = getattr(part.source, states)[at]
                    if getattr(self, states)[at] is None:
                        getattr(self, states)[at] = state.new_zeros((rows, *state.shape[1:]))
                    getattr(self, states)[at].index_copy_(0, part.new, state.index_select(0, part.old))
                    getattr(self, begun)[at] = True
        for at in range(self.number_of_states):
            self.has_previous_state[at] = any(part.source.has_previous_state[at] for part in parts)
        for part in parts:
            self.dtype, self.device = part.source.dtype, part.source.device
            self.conv_kernel_size = dict(part.source.conv_kernel_size)

    @property
    def bytes(self) -> int:
        states = (*self.conv_states.values(), *self.recurrent_states.values())
        return sum(state.nbytes for state in states if state is not None)


class Both(States, Growing):
    """States of a row, and keys and values of its columns."""

    def __init__(self, number_of_states: int = 1, window: int | None = None) -> None:
        Growing.__init__(self, window)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def take(self, parts: list[Rows], rows: int, columns: int) -> None:
        States.take(self, parts, rows, columns)
        Growing.take(self, parts, rows, columns)

    @property
    def bytes(self) -> int:
        return sum(columns.bytes for columns in self._columns) + super().bytes


class BothWindow(Both):
    """States of a row, and keys and values of the last ``sliding_window`` columns."""

    is_sliding = True

    def __init__(self, number_of_states: int, sliding_window: int) -> None:
        super().__init__(number_of_states, sliding_window - 1)
        self.sliding_window = sliding_window

    @classmethod
    def like(cls, layer: Any) -> Any:
        return cls(layer.number_of_states, layer.sliding_window)


class Nothing(DummyLayer):
    """A layer of another stage, or one that remembers nothing."""

    bytes = 0

    @classmethod
    def like(cls, layer: Any) -> Nothing:
        return cls()

    def take(self, parts: list[Rows], rows: int, columns: int) -> None:
        pass


# transformers' kind of cache layer -> ours
KINDS: dict[type, Any] = {
    DynamicLayer: Growing,
    DynamicSlidingWindowLayer: GrowingWindow,
    DynamicIndexedLayer: Indexed,
    LinearAttentionLayer: States,
    LinearAttentionAndFullAttentionLayer: Both,
    LinearAttentionAndSlidingWindowAttentionLayer: BothWindow,
    DummyLayer: Nothing,
}
