"""Rows of figures and how they are printed."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Row:
    """One measurement: ours, a peer's where there is one, and what it must not exceed.

    ``limit`` bounds the ratio to the peer where there is a ``peer``, else the figure itself.
    """

    what: str
    ours: float
    unit: str
    limit: float
    peer: float | None = None
    note: str = ""

    @property
    def bounded(self) -> float:
        return self.ours if self.peer is None else self.ours / self.peer

    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.peer is None else f"{self.bounded:.2f}"
        peer = "" if self.peer is None else f"{self.peer:.3g} {self.unit}"
        met = "yes" if self.bounded <= self.limit else "NO"
        return (self.what, f"{self.ours:.3g} {self.unit}", peer, ratio, f"≤ {self.limit:g}", met, self.note)


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as Markdown, with what they were measured on."""
    head = ("what", "kalavai_nb", "ipyparallel", "ratio", "must", "met", "note")
    table = [head, *(row.cells() for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print("\n".join(lines))
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "distributed", "ipykernel", "ipyparallel")
    )
    print(f"\n{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {versions}")


def spread(values: Sequence[float], unit: str = "ms") -> str:
    """``"p10 … p90"`` of some values."""
    deciles = statistics.quantiles(values, n=10)
    return f"p10 {deciles[0]:.3g} … p90 {deciles[-1]:.3g} {unit}"
