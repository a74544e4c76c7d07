"""What quiet moments of a soak say: whether anything grows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from soak.figures import Sample

# fewer quiet moments say nothing about growth
LEAST_MOMENTS = 6


@dataclass(frozen=True)
class Bound:
    """What a figure may grow by, from the first third of the quiet moments to the last."""

    figure: str
    most: float
    # what it may grow by more for each trial, since it keeps them by design
    most_for_trial: float = 0.0


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
    Bound("memory MB", 60),
    Bound("memory MB of kernel", 25),
    Bound("memory MB of head", 10),
    Bound("memory MB of workers", 20),
    Bound("memory MB of others", 20),
    Bound("MB in scratch", 2),
    Bound("files in scratch", 20),
    Bound("files in runtime", 2),
    Bound("MB in journal", 1, 0.01),
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


def rows(samples: list[Sample], trials: dict[float, int]) -> list[Row]:
    """A row for each bound. ``trials`` is how many there had been at each quiet moment, by its seconds."""
    quiet = [sample for sample in samples if sample.is_quiet]
    if not quiet:
        return []
    third = max(1, len(quiet) // 3)
    first, last = quiet[:third], quiet[-third:]
    more = median(trials[s.seconds] for s in last) - median(trials[s.seconds] for s in first)
    found = []
    for bound in BOUNDS:
        begin, end = (round(median(s.figures[bound.figure] for s in part), 2) for part in (first, last))
        must = bound.most + bound.most_for_trial * more
        met = end - begin <= must if len(quiet) >= LEAST_MOMENTS else None
        found.append(Row(bound.figure, begin, end, must, met))
    return found


def table(found: list[Row]) -> str:
    lines = ["| what | begin | end | growth | must | met |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(str, found)])
