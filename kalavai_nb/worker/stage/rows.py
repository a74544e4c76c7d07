"""Rows: sequences under way, which join and leave batches between calls, and what each layer remembers of them.

Rows that are called together are one `Batch`: their columns are aligned at the right, and what is to the left of a
row's first token is padding. A call for exactly the rows of the batch before copies nothing; another set of rows is
gathered from the batches they were in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from kalavai_nb.worker.stage.layers import KINDS, Nothing, Rows

COLUMN_STEP = 512


class RowsCache(Cache):
    """The cache that the model's ``forward`` sees.

    Lengths are told from the columns of the batch, never from a layer: those of other stages are never filled, and
    layers without columns have no length.
    """

    columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many columns the keys of this layer will have, and which column is their first."""
        window = getattr(self.layers[layer_idx], "sliding_window", None)
        first = 0 if window is None else max(self.columns - window + 1, 0)
        return self.columns - first + query_length, first

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        if layer_idx is None or isinstance(self.layers[layer_idx], Nothing):
            return self.columns > 0
        return bool(super().has_previous_state(layer_idx, state_idx))


class Batch:
    """Rows that are called together: their layers' memory, and where the padding of each ends."""

    def __init__(self, rows: tuple[int, ...], padding: Sequence[int], columns: int, layers: list[Any], device: Any):
        self.rows = rows
        self.padding = list(padding)
        self.cache = RowsCache(layers=layers)
        self.cache.columns = columns
        # [B, 1]; None where there is no padding: models then take a faster way to the same result
        self._padding = torch.tensor(self.padding, device=device)[:, None] if any(padding) else None
        self._device = device
        self._mask: torch.Tensor | None = None
        self._positions = torch.arange(0, device=device)

    @property
    def columns(self) -> int:
        return int(self.cache.columns)

    def lengths(self) -> dict[int, int]:
        return {row: max(self.columns - padding, 0) for row, padding in zip(self.rows, self.padding, strict=True)}

    def mask(self, new: int) -> torch.Tensor | None:
        """[B, N]: which of all columns, the ``new`` ones included, are tokens. None: all."""
        if self._padding is None:
            return None
        total = self.columns + new
        if self._mask is None or self._mask.shape[1] < total:
            self._mask = torch.arange(total + COLUMN_STEP, device=self._device) >= self._padding
        return self._mask[:, :total]

    def positions(self, new: int) -> torch.Tensor:
        """The place of each new column in its row, [B, S], or [1, S] where all rows agree."""
        total = self.columns + new
        if self._positions.shape[-1] < total:
            every = torch.arange(total + COLUMN_STEP, device=self._device)[None]
            self._positions = every if self._padding is None else (every - self._padding).clamp_(min=0)
        return self._positions[:, self.columns : total]


class Memory:
    """All batches of a stage."""

    def __init__(self, config: Any, start: int, end: int, device: torch.device) -> None:
        self._layers = [
            (KINDS[type(layer)] if start <= index < end else Nothing, layer)
            for index, layer in enumerate(DynamicCache(config=config).layers)
        ]
        self._device = device
        self._batch_of: dict[int, Batch] = {}

    def has(self, row: int) -> bool:
        return row in self._batch_of

    def lengths(self) -> dict[int, int]:
        return {row: length for batch in self._batches() for row, length in batch.lengths().items()}

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for batch in self._batches() for layer in batch.cache.layers)

    def batch(self, rows: tuple[int, ...], pads: Sequence[int]) -> Batch:
        """The batch of exactly these rows, in this order; ``pads`` are columns that come next and are padding."""
        found = self._batch_of.get(rows[0])
        if found is not None and found.rows == rows:
            return found
        return self._gather(rows, pads)

    def drop(self, rows: Iterable[int]) -> None:
        gone = {row for row in rows if row in self._batch_of}
        for batch in {id(b): b for b in (self._batch_of[row] for row in gone)}.values():
            self._keep(batch, [row for row in batch.rows if row not in gone])
        for row in gone:
            del self._batch_of[row]

    def _batches(self) -> list[Batch]:
        return list({id(batch): batch for batch in self._batch_of.values()}.values())

    def _gather(self, rows: tuple[int, ...], pads: Sequence[int]) -> Batch:
        sources = list({id(b): b for b in (self._batch_of.get(row) for row in rows) if b is not None}.values())
        known = {row: length for batch in sources for row, length in batch.lengths().items()}
        columns = max((known.get(row, 0) for row in rows), default=0)
        padding = [columns - known.get(row, 0) + pad for row, pad in zip(rows, pads, strict=True)]
        made = self._made_of(sources, rows, columns)
        for source in sources:
            self._keep(source, [row for row in source.rows if row not in rows])
        batch = Batch(rows, padding, columns, made, self._device)
        self._batch_of.update(dict.fromkeys(rows, batch))
        return batch

    def _keep(self, batch: Batch, rows: list[int]) -> None:
        """Make the batch one of these rows of it."""
        if not rows:
            return
        lengths = batch.lengths()
        columns = max(lengths[row] for row in rows)
        layers = self._made_of([batch], tuple(rows), columns)
        kept = Batch(tuple(rows), [columns - lengths[row] for row in rows], columns, layers, self._device)
        self._batch_of.update(dict.fromkeys(rows, kept))

    def _made_of(self, sources: list[Batch], rows: tuple[int, ...], columns: int) -> list[Any]:
        """New layers of ``rows``, with what the sources remember of them."""
        moves = []
        for source in sources:
            pairs = [(source.rows.index(row), at) for at, row in enumerate(rows) if row in source.rows]
            old, new = (torch.tensor(side, device=self._device) for side in zip(*pairs, strict=True))
            moves.append((source, old, new))
        made = []
        for index, (kind, layer) in enumerate(self._layers):
            parts = [Rows(source.cache.layers[index], old, new) for source, old, new in moves]
            made.append(kind.like(layer))
            made[-1].take(parts, len(rows), columns)
        return made
