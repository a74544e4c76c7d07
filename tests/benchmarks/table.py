"""Rows of figures and how they are printed."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

PACKAGES = (
    "torch",
    "distributed",
    "ipykernel",
    "ipyparallel",
    "ray",
    "joblib",
    "optuna",
    "scikit-learn",
    "transformers",
    "bitsandbytes",
)


@dataclass(frozen=True)
class Row:
    """One measurement: ours, ipyparallel's where there is one, and what it must not exceed.

    ``limit`` bounds the ratio to the peer where there is a ``peer``, else the figure itself; from above, or from below
    where it must be ``at_least`` that.
    """

    what: str
    ours: float
    unit: str
    limit: float
    peer: float | None = None
    note: str = ""
    at_least: bool = False

    @property
    def bounded(self) -> float:
        return self.ours if self.peer is None else self.ours / self.peer

    @property
    def met(self) -> bool:
        return self.bounded >= self.limit if self.at_least else self.bounded <= self.limit

    @property
    def entries(self) -> dict[str, str]:
        """What stands in each column."""
        return {
            "what": self.what,
            "kalavai_nb": f"{self.ours:.3g} {self.unit}",
            "ipyparallel": "" if self.peer is None else f"{self.peer:.3g} {self.unit}",
            "ratio": "" if self.peer is None else f"{self.bounded:.2f}",
            "must": f"{'≥' if self.at_least else '≤'} {self.limit:g}",
            "met": "yes" if self.met else "NO",
            "note": self.note,
        }


@dataclass(frozen=True)
class Comparison:
    """One case: what came of it here and with each peer, in words, and whether ours is what it must be."""

    case: str
    ours: str
    peers: Mapping[str, str]
    must: str = ""
    met: bool = True

    @property
    def entries(self) -> dict[str, str]:
        """What stands in each column."""
        met = "yes" if self.met else "NO"
        return {
            "case": self.case,
            "kalavai_nb": self.ours,
            **self.peers,
            "must": self.must,
            "met": met if self.must else "",
        }


def print_table(rows: Sequence[Row | Comparison]) -> None:
    """Print rows as Markdown, a table for each kind of row, with what they were measured on."""
    for kind in dict.fromkeys(map(type, rows)):
        entries = [row.entries for row in rows if type(row) is kind]
        table = [tuple(entries[0]), *(tuple(each.values()) for each in entries)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        print("\n".join(lines) + "\n")
    versions = []
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    print(f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {', '.join(versions)}")


def spread(values: Sequence[float], unit: str = "ms") -> str:
    """``"p10 … p90"`` of some values."""
    deciles = statistics.quantiles(values, n=10)
    return f"p10 {deciles[0]:.3g} … p90 {deciles[-1]:.3g} {unit}"
