"""What quiet moments of a soak say: whether anything grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from soak.figures import Sample

# fewer quiet moments say nothing about growth
LEAST_MOMENTS = 6


@dataclass(frozen=True)
class Bound:
    """What a figure may grow by, from the first third of the quiet moments to the last.

    ``more`` is for what is kept by design: so much for each time that this was done.
    """

    figure: str
    most: float
    more: Mapping[str, float] = field(default_factory=dict)


# results stay in the notebook and in the journal
OF_TRIALS = {"trials": 0.008}
# what a killed notebook has published is taken away by a Jupyter server, and there is none
OF_KILLED = {"visitor killed": 2, "visitor killed while it runs a cell": 2}

BOUNDS = [
    Bound("processes", 0),
    Bound("zombies", 0),
    Bound("descriptors", 8),
    Bound("descriptors of kernel", 4),
    Bound("descriptors of head", 4),
    Bound("descriptors of workers", 4),
    Bound("sockets", 4),
    Bound("threads", 4),
    Bound("threads of kernel", 2),
    Bound("memory MB", 60, OF_TRIALS),
    Bound("memory MB of kernel", 30, OF_TRIALS),
    Bound("memory MB of head", 10),
    Bound("memory MB of workers", 20),
    Bound("memory MB of others", 20),
    Bound("MB in scratch", 2),
    Bound("files in scratch", 20),
    Bound("files in runtime", 2, OF_KILLED),
    Bound("MB in journal", 1, OF_TRIALS),
    Bound("files in /dev/shm", 0),
    Bound("MB in /dev/shm", 1),
]


@dataclass(frozen=True)
class Row:
    """One figure of the table. ``met`` is None where there were too few moments to tell."""

    what: str
    begin: float
    end: float
    must: float
    met: bool | None

    def __str__(self) -> str:
        met = {True: "yes", False: "**no**", None: "–"}[self.met]
        growth, begin, end = self.end - self.begin, f"{self.begin:g}", f"{self.end:g}"
        return f"| {self.what} | {begin} | {end} | {growth:+.4g} | ≤ {self.must:.4g} | {met} |"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "growth": self.end - self.begin}


def rows(samples: list[Sample], counts: Mapping[float, Counter[str]]) -> list[Row]:
    """A row for each bound. ``counts`` is how often what had been done at each quiet moment, by its seconds."""
    quiet = [sample for sample in samples if sample.is_quiet]
    if not quiet:
        return []
    third = max(1, len(quiet) // 3)
    first, last = quiet[:third], quiet[-third:]

    def times(name: str) -> float:
        before, after = (median(counts[s.seconds][name] for s in part) for part in (first, last))
        return after - before

    found = []
    for bound in BOUNDS:
        begin, end = (round(median(s.figures[bound.figure] for s in part), 2) for part in (first, last))
        must = bound.most + sum(each * times(name) for name, each in bound.more.items())
        met = end - begin <= must if len(quiet) >= LEAST_MOMENTS else None
        found.append(Row(bound.figure, begin, end, must, met))
    return found


def table(found: list[Row]) -> str:
    lines = ["| what | begin | end | growth | must | met |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(str, found)])
