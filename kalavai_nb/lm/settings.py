"""How a model was asked to be loaded, and what is seen of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from kalavai_nb.state import Device


@dataclass(frozen=True)
class Settings:
    """What `pool.load` was given, checked.

    ``gpus`` is the number of stages, None for the fewest that hold the model; ``spares`` how many devices beside them
    are kept ready, where they are free. A model whose devices are lost waits ``wait_seconds`` for others.
    """

    dtype: str = "auto"
    quant: str | None = None
    gpus: int | None = None
    max_len: int = 4096
    max_batch: int = 8
    spares: int = 1
    wait_seconds: float = 60.0
    piece_tokens: int = 512


@dataclass(frozen=True)
class StageFacts:
    """A stage as it is now: where, which process, which layers (from, up to but without), what they take."""

    device: Device
    pid: int
    layers: tuple[int, int]
    memory_bytes: int
    kv_bytes: int
    step_seconds: float | None
