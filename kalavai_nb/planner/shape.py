"""What a model consists of, layer by layer, in parameters and bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class LayerShape:
    """One layer. ``kv_bytes_per_token`` is what its cache grows by with each token of a sequence, at the model's own
    dtype, up to ``window`` tokens; ``state_bytes`` is what it holds of a sequence however long (linear attention).
    """

    params: int
    active_params: int
    kv_bytes_per_token: int
    window: int | None = None
    state_bytes: int = 0

    def kv_bytes(self, tokens: int) -> int:
        """The cache of one sequence of so many tokens."""
        kept = tokens if self.window is None else min(tokens, self.window)
        return self.state_bytes + kept * self.kv_bytes_per_token


@dataclass(frozen=True)
class ModelShape:
    """A causal language model without its numbers.

    ``head_params`` is the size of the head also where it is ``tied``, which is to say the same matrix as the
    embedding: then it costs nothing on a device that has both ends of the model, and its whole size on one that has the
    last layers only. ``assumed`` says what is no fact about this model; empty where all is counted.
    """

    name: str
    layers: tuple[LayerShape, ...]
    embedding_params: int
    norm_params: int
    head_params: int
    tied: bool
    hidden_size: int
    vocabulary: int
    dtype: str = "bfloat16"
    assumed: str = ""

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number at the model's own dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def params(self) -> int:
        """All parameters, a tied head counted once."""
        return self._whole(layer.params for layer in self.layers)

    @property
    def active_params(self) -> int:
        """Those that one token meets: of a mixture of experts, not all."""
        return self._whole(layer.active_params for layer in self.layers)

    def kv_bytes(self, tokens: int, batch: int = 1) -> int:
        """The caches of all layers for ``batch`` sequences of ``tokens``."""
        return batch * sum(layer.kv_bytes(tokens) for layer in self.layers)

    def as_dtype(self, dtype: str) -> ModelShape:
        """The same, loaded at another dtype: caches and activations are of it, too."""
        times = DTYPE_BYTES[dtype] / self.dtype_bytes
        layers = tuple(
            replace(
                layer,
                kv_bytes_per_token=int(layer.kv_bytes_per_token * times),
                state_bytes=int(layer.state_bytes * times),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, dtype=dtype)

    def _whole(self, layers: Iterable[int]) -> int:
        return self.embedding_params + sum(layers) + self.norm_params + (0 if self.tied else self.head_params)
