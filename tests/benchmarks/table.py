"""Rows of figures, and the one table of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

COLUMNS = ("ratio", "what", "kalavai_nb", "peers", "must", "met", "spread and notes")
# beside a ratio: which way is better
LESS, MORE = "↓", "↑"


@dataclass(frozen=True)
class Row:
    """One case: what came of it here and with each peer, in words, and whether ours is what it must be.

    ``ratio`` is our figure over the best peer's; ``more_is_better`` says how to read it.
    """

    what: str
    ours: str
    peers: Mapping[str, str] = field(default_factory=dict)
    must: str = ""
    met: bool = True
    ratio: float | None = None
    more_is_better: bool = False
    note: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands in each of `COLUMNS`."""
        peers = "; ".join(f"{peer} {said}" for peer, said in self.peers.items() if said)
        ratio = "" if self.ratio is None else f"{self.ratio:.2f} {MORE if self.more_is_better else LESS}"
        met = ("yes" if self.met else "**no**") if self.must else ""
        return ratio, self.what, self.ours, peers, self.must, met, self.note


def figure(
    what: str,
    ours: float,
    unit: str,
    limit: float | None,
    peers: Mapping[str, float] | None = None,
    note: str = "",
    *,
    at_least: bool = False,
    of_ratio: bool = False,
) -> Row:
    """A measured number in ``unit``. ``limit`` bounds it from above, or from below where it is to be ``at_least`` that;
    with ``of_ratio`` it bounds the ratio to the best of ``peers``."""
    best: Callable[..., float] = max if at_least else min
    ratio = ours / best(peers.values()) if peers else None
    bounded = ratio if of_ratio else ours
    met = limit is None or bounded is None or (bounded >= limit if at_least else bounded <= limit)
    word = f"{'≥' if at_least else '≤'} {limit:g} {'×' if of_ratio else unit}".strip() if limit is not None else ""
    told = {peer: f"{value:.3g} {unit}" for peer, value in (peers or {}).items()}
    return Row(what, f"{ours:.3g} {unit}", told, word, met, ratio, at_least, note)


def markdown(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The table, those with a ratio first, each script's in its order."""
    ordered = sorted(rows, key=lambda row: row.ratio is None)
    named = [dict(zip(COLUMNS, row.columns, strict=True)) for row in ordered]
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in named)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], unit: str = "ms") -> str:
    """``"p10 … p90"`` of some values, or their least and greatest where they are few."""
    if len(values) < 10:
        return f"{min(values):.3g} … {max(values):.3g} {unit}"
    deciles = statistics.quantiles(values, n=10)
    return f"p10 {deciles[0]:.3g} … p90 {deciles[-1]:.3g} {unit}"
