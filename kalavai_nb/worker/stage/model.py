"""StageModel: layers [start, end) of a causal language model, and what they remember of the rows that are under way.

Shapes: B rows, S columns of this call, N columns so far, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from kalavai_nb.errors import ModelError
from kalavai_nb.worker.stage.cut import Cut, check_supported, layer_count
from kalavai_nb.worker.stage.load import load, tensors_of
from kalavai_nb.worker.stage.quant import weight_bytes
from kalavai_nb.worker.stage.rows import Memory

__all__ = ["StageModel", "check_supported", "layer_count", "tensors_of"]


class StageModel:
    """Layers [start, end) of a causal language model, with the KV caches of the sequences that are under way."""

    def __init__(self, stage: Cut, device: torch.device) -> None:
        self._stage = stage
        self.config = stage.model.config
        self.start, self.end, self.layers_total = stage.start, stage.end, layer_count(self.config)
        self.first, self.last = self.start == 0, self.end == self.layers_total
        self.device, self.dtype = device, self.config.dtype
        self.vocabulary, self.hidden_size = int(self.config.vocab_size), int(self.config.hidden_size)
        self._called = stage.model if self.last else stage.base
        accepted = inspect.signature(self._called.forward).parameters
        # the cache had another name before transformers 5.24
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._options = {"use_cache": True} | ({"logits_to_keep": 1} if self.last else {})
        self._memory = Memory(self.config, self.start, self.end, device)

    @classmethod
    def load(
        cls,
        directory: Path,
        start: int,
        end: int,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        quant: str | None = None,
        on_progress: Callable[[int, int], None] = lambda read_bytes, total_bytes: None,
    ) -> StageModel:
        """From a directory in Hugging Face form with safetensors, which may have the bytes of our tensors only."""
        place = torch.device(device)
        stage = load(Path(directory), start, end, dtype=dtype, device=place, quant=quant, on_progress=on_progress)
        return cls(stage, place)

    @torch.inference_mode()
    def run(self, rows: Sequence[int], x: torch.Tensor, pads: Sequence[int] | None = None) -> torch.Tensor:
        """One piece of some rows: x is [B, S] token ids on the first stage, else [B, S, D].

        A row that is not known yet begins empty. The first ``pads[i]`` columns of ``x[i]`` are padding, at most all of
        them. Gives [B, S, D], or on the last stage the logits of the last column, [B, V] float32.
        """
        asked = tuple(rows)
        if pads is None or not any(pads):
            return self._run(asked, x, (0,) * len(asked))
        return self._run_padded(asked, x, list(pads))

    def drop(self, rows: Iterable[int]) -> None:
        """Forget rows; unknown ones are ignored."""
        self._memory.drop(rows)

    def reset(self) -> None:
        """Forget all rows."""
        self._memory.drop(list(self._memory.lengths()))

    def lengths(self) -> dict[int, int]:
        """How many tokens of each row have been seen, without padding."""
        return self._memory.lengths()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that are held now, as measured on the tensors."""
        return {"weights_bytes": weight_bytes(self._stage.model), "kv_bytes": self._memory.bytes}

    def _run(self, rows: tuple[int, ...], x: torch.Tensor, pads: Sequence[int]) -> torch.Tensor:
        batch = self._memory.batch(rows, pads)
        columns = x.shape[1]
        inputs = self._inputs(x) | {self._cache_name: batch.cache}
        output = self._called(
            **inputs, attention_mask=batch.mask(columns), position_ids=batch.positions(columns), **self._options
        )
        batch.cache.columns += columns
        if self.last:
            logits: torch.Tensor = output.logits[:, -1].float()
            return logits
        return self._stage.passed()

    def _inputs(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.first:
            return {"input_ids": x.to(self.device)}
        hidden = x.to(self.device, self.dtype)
        self._stage.enter(hidden)
        return {"inputs_embeds": hidden}

    def _run_padded(self, rows: tuple[int, ...], x: torch.Tensor, pads: list[int]) -> torch.Tensor:
        """Padding stands before the first token of a row only: rows of which that is not so are run apart.

        Rows whose piece is all padding are left out; what they give is zeros.
        """
        width = x.shape[1]
        if not all(0 <= pad <= width for pad in pads):
            raise ModelError(f"A piece of {width} columns cannot have {pads} columns of padding.")
        groups: dict[int, list[int]] = {}
        for at, (row, pad) in enumerate(zip(rows, pads, strict=True)):
            if pad < width:
                groups.setdefault(pad if self._memory.has(row) else 0, []).append(at)
        output: torch.Tensor | None = None
        for places in groups.values():
            skip = min(pads[at] for at in places)
            part = self._run(tuple(rows[at] for at in places), x[places, skip:], [pads[at] - skip for at in places])
            shape = part.shape[1:] if self.last else (width, *part.shape[2:])
            output = part.new_zeros((len(rows), *shape)) if output is None else output
            if self.last:
                output[places] = part
            else:
                output[places, skip:] = part
        return self._nothing(len(rows), width) if output is None else output

    def _nothing(self, rows: int, width: int) -> torch.Tensor:
        if self.last:
            return torch.zeros((rows, self.vocabulary), device=self.device)
        return torch.zeros((rows, width, self.hidden_size), dtype=self.dtype, device=self.device)
