"""The parameters of many configs as columns of numbers, whatever the configs are: dicts, objects, tuples, texts."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CATEGORIES = 10
# texts that are equal so far pass for the same
_TEXT_CHARACTERS = 1000
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """One quantity of many trials.

    ``numbers`` [trials] are NaN where a trial has none. Where there are ``categories``, they are positions in them.
    """

    name: str
    numbers: Numbers
    categories: tuple[str, ...] = ()
    log: bool = False

    def scaled(self, numbers: Any) -> Any:
        """Numbers as they are, or their logarithms where the axis is logarithmic."""
        return np.log10(numbers) if self.log else np.asarray(numbers)

    def between(self, numbers: Any, low: float, high: float) -> Numbers:
        """Where numbers lie on the way from ``low``, which is 0, to ``high``, which is 1."""
        start, end = self.scaled([low, high])
        return np.asarray((self.scaled(numbers) - start) / ((end - start) or 1.0))

    def ticks(self) -> list[float]:
        """Values of a small grid (16, 32, 64) that deserve a tick each; empty where an axis should choose."""
        values = np.unique(self.numbers[np.isfinite(self.numbers)])
        if self.categories or len(values) <= 2:
            return [float(n) for n in (range(len(self.categories)) if self.categories else values)]
        steps = np.diff(self.scaled(values))
        return (
            [float(value) for value in values] if len(values) <= 7 and np.allclose(steps, steps[0], rtol=0.02) else []
        )

    def jittered(self) -> Numbers:
        """The numbers, but many equal ones side by side: the golden ratio spreads any number of them evenly."""
        values = np.unique(self.scaled(self.numbers[np.isfinite(self.numbers)]))
        crowd = len(self.numbers) / max(len(values), 1)
        if not 1 < len(values) <= 12 or crowd <= (2 if self.categories else 10):
            return self.numbers
        width = 0.5 if self.categories else 0.4 * np.diff(values).min()
        moved = self.scaled(self.numbers) + width * (np.arange(len(self.numbers)) * 0.618034 % 1 - 0.5)
        return np.asarray(10**moved if self.log else moved)

    def labels(self, length: int) -> list[str]:
        """The categories in at most so many characters, without what all long ones begin with."""
        if max(map(len, self.categories), default=0) <= length:
            return list(self.categories)
        long = [text for text in self.categories if len(text) > length]
        prefix = _common_start(long) if len(long) > 1 else ""
        start = prefix.rfind(" ") + 1 if len(prefix) > length // 2 else 0
        texts = [f"…{text[start:]}" if start and text.startswith(prefix) else text for text in self.categories]
        return [short(text, length) for text in texts]


def parameters_of(configs: Sequence[Any]) -> tuple[list[Axis], list[str]]:
    """(the parameters in which configs differ, in the order in which they come; names of those that differ in all)."""
    flat = [flattened(config) for config in configs]
    names = list(dict.fromkeys(name for entry in flat for name in entry))
    axes = {name: _axis(name, [entry.get(name, _ABSENT) for entry in flat]) for name in names}
    varying = [axis for axis in axes.values() if axis and len(np.unique(axis.numbers)) > 1]
    return varying, [name for name, axis in axes.items() if axis is None]


def influence(axis: Axis, scores: Numbers) -> float:
    """Share of the ranks of ``scores`` [trials] that the parameter explains: at most 1, 0 and less for none."""
    known = np.isfinite(axis.numbers) & np.isfinite(scores)
    values, ranks = axis.numbers[known], _ranks(scores[known])
    groups = _ranks(values) if axis.categories else np.floor(_ranks(values) / max(len(values), 1) * 6)
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 2 or len(values) <= len(names) or not ranks.var():
        return 0.0
    means = np.bincount(members, ranks) / np.bincount(members)
    explained = ((means[members] - ranks.mean()) ** 2).mean() / ranks.var()
    # many groups explain much by chance
    return float(1 - (1 - explained) * (len(values) - 1) / (len(values) - len(names)))


def flattened(config: Any, name: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 0.1} of nested dicts, dataclasses and plain objects; {"config": …} of what has no parts."""
    parts = _parts(config)
    if parts is None or (name and not parts):
        return {name or "config": config}
    flat: dict[str, Any] = {}
    for key, value in parts.items():
        flat.update(flattened(value, f"{name}.{key}" if name else str(key)))
    return flat


def text_of(value: Any) -> str:
    """A value in one line, the same for equal values."""
    if isinstance(value, np.generic):
        value = value.item()
    if callable(value) and hasattr(value, "__name__"):
        text = str(value.__name__)
    elif repr(type(value).__repr__) == repr(object.__repr__) or hasattr(value, "shape"):
        # an address says nothing
        text = f"{type(value).__name__} {'×'.join(map(str, getattr(value, 'shape', ())))}".rstrip()
    elif isinstance(value, str):
        text = value or '""'
    else:
        text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return " ".join(text[:_TEXT_CHARACTERS].split())


def short(text: str, length: int) -> str:
    """The text, with … for its end where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def is_spread(numbers: Numbers, ratio: float = 100) -> bool:
    """Whether positive numbers are of so many sizes that most of them would lie at the foot of a plain axis."""
    known = numbers[np.isfinite(numbers)]
    if not len(known) or known.min() <= 0:
        return False
    return bool(known.max() > ratio * known.min() and np.median(known) < known.max() / 4)


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


class _Absent:
    def __repr__(self) -> str:
        return "–"


_ABSENT = _Absent()


def _parts(config: Any) -> dict[Any, Any] | None:
    if isinstance(config, dict):
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if isinstance(config, tuple) and hasattr(config, "_asdict"):
        return dict(config._asdict())
    own = getattr(config, "__dict__", None)
    if isinstance(own, dict) and own and not callable(config):
        plain = (bool, int, float, str, type(None), np.generic, dict, list, tuple)
        return own if all(isinstance(value, plain) for value in own.values()) else None
    return None


def _axis(name: str, values: list[Any]) -> Axis | None:
    """None for texts of which most are different."""
    numbers = [_number(value) for value in values]
    present = [number for value, number in zip(values, numbers, strict=True) if value is not _ABSENT]
    texts = [text_of(value) for value in values]
    counts = Counter(texts)
    mostly_numbers = 2 * sum(number is not None for number in present) > len(present)
    is_numeric = None not in present or (mostly_numbers and len(counts) > MAX_CATEGORIES)
    if is_numeric and len({*numbers} - {None}) > 1:
        column = np.array([math.nan if number is None else number for number in numbers])
        known = column[np.isfinite(column)]
        return Axis(name, column, log=bool(is_spread(known) or _is_geometric(known)))
    common = [text for text, _ in counts.most_common(MAX_CATEGORIES - (len(counts) > MAX_CATEGORIES))]
    if 2 * sum(counts[text] for text in common) < len(texts):
        return None
    numeric = {text: number for text, number in zip(texts, numbers, strict=True) if number is not None}
    categories = sorted(common, key=lambda text: (text not in numeric, numeric.get(text, 0), text))
    if len(common) < len(counts):
        categories.append(f"{len(counts) - len(common)} others")
    position = {text: float(number) for number, text in enumerate(categories)}
    return Axis(name, np.array([position.get(text, len(common)) for text in texts]), tuple(categories))


def _is_geometric(values: Numbers) -> bool:
    """Whether it is a grid such as 16, 32, 64."""
    if not len(values) or values.min() <= 0:
        return False
    steps = np.diff(np.log(np.unique(values)))
    return 2 <= len(steps) <= 12 and bool(np.allclose(steps, steps[0], rtol=0.02)) and steps.sum() > 1


def _ranks(values: Numbers) -> Numbers:
    """Equal values have equal ranks, from 0."""
    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - counts)[positions], dtype=float)


def _number(value: Any) -> float | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
