"""Where a loaded model is: what ``lm.plan`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kalavai_nb.grid import grid_html, grid_text

COLUMNS = ("stage", "device", "name", "layers", "weights", "KV cache", "of", "ms per layer")


@dataclass(frozen=True)
class PlannedStage:
    """One stage: bytes as planned, with the caches full, and a layer's time for one token as measured there."""

    device: str
    device_name: str
    start: int
    end: int
    weights_bytes: int
    kv_bytes: int
    free_bytes: int
    seconds_per_layer: float | None


@dataclass(frozen=True)
class LoadedPlan:
    """The stages of a model in the order of the ring, and what is to be expected of it."""

    name: str
    quant: str
    stages: tuple[PlannedStage, ...]
    spares: tuple[str, ...]
    tokens_per_second: float | None

    def table(self) -> Any:
        """A pandas DataFrame, a row for each stage."""
        import pandas as pd

        return pd.DataFrame([vars(stage) for stage in self.stages])

    def __repr__(self) -> str:
        return "\n".join([self._title(), grid_text(COLUMNS, self._rows()), *self._after()])

    def _repr_html_(self) -> str:
        after = "".join(f"<div>{line}</div>" for line in self._after())
        return f"<div>{self._title()}</div>{grid_html(COLUMNS, self._rows())}{after}"

    def _title(self) -> str:
        count = len(self.stages)
        return f"{self.name} at {self.quant} on {count} device{'s' * (count != 1)}"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(number),
                stage.device,
                stage.device_name,
                f"{stage.start}–{stage.end - 1}",
                _size(stage.weights_bytes),
                _size(stage.kv_bytes),
                f"{_size(stage.free_bytes)} free",
                "" if stage.seconds_per_layer is None else f"{1000 * stage.seconds_per_layer:.2f}",
            )
            for number, stage in enumerate(self.stages)
        ]

    def _after(self) -> list[str]:
        lines = []
        if self.tokens_per_second:
            lines.append(f"expected: {self.tokens_per_second:.3g} tokens/s for one request, more for several at once")
        if self.spares:
            lines.append(f"spare: {', '.join(self.spares)}")
        return lines


def _size(number_bytes: int) -> str:
    return f"{number_bytes / 2**30:.2f} GiB" if number_bytes >= 2**30 else f"{number_bytes / 2**20:.0f} MiB"
