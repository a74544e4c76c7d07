"""What is worth seeing of a sweep: which trials, which parameters, which curves. `sweep_figure` draws it."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kalavai_nb.errors import MissingExtra, SweepError
from kalavai_nb.plot.parameters import Axis, Numbers, flattened, influence, is_spread, parameters_of, short, text_of
from kalavai_nb.scores import check_mode, ranked, score
from kalavai_nb.state import Trial, TrialState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PARAMETERS = 8
MAX_CURVES = 150
_MAX_STEPS = 400


@dataclass(frozen=True)
class Curve:
    """What one trial reported: ``numbers`` at ``steps``. ``shade`` is as in `Picture`, NaN where it is not complete."""

    steps: Numbers
    numbers: Numbers
    shade: float
    is_pruned: bool


@dataclass(frozen=True)
class Picture:
    """What to draw: the trials that have a number, complete and pruned ones, as columns [trials].

    ``order`` are the positions of the complete ones, best first; ``shades`` their ranks from 0, the best, to 1; NaN for
    pruned ones. ``limits`` are the numbers between which nearly all lie. ``curves`` come best first, then those of
    trials that are not complete; ``reporting`` is how many there would be.
    """

    metric: Axis
    mode: str
    limits: tuple[float, float]
    parameters: list[Axis]
    is_pruned: NDArray[np.bool_]
    order: list[int]
    shades: Numbers
    curves: list[Curve]
    curves_of: str
    reporting: int
    title: str
    notes: list[str]


def plot(trials: Sequence[Trial], metric: str | None, mode: str) -> Figure:
    """A figure: the metric against each parameter that varies, both as parallel coordinates, and what trials reported.

    It shows itself as the value of a cell, and belongs to no pyplot. Raises SweepError where no complete trial has a
    number under ``metric``, MissingExtra without Matplotlib, OptionError for a ``mode`` but "min" and "max".
    """
    check_mode(mode)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("plot() needs matplotlib, which is not installed. Run: pip install 'kalavai-nb[examples]'")
    picture = picture_of(trials, metric, mode)
    from kalavai_nb.plot.figure import draw

    return draw(picture)


def picture_of(trials: Sequence[Trial], metric: str | None, mode: str) -> Picture:
    """What there is to draw. Raises SweepError where no complete trial has a number."""
    complete = [trial for trial in trials if _is_finite(ranked(trial, metric))]
    if not complete:
        raise SweepError(_nothing(trials, metric))
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED and _is_finite(score(trial, metric))]
    shown = sorted([*complete, *pruned], key=lambda trial: trial.index)
    numbers = np.array([score(trial, metric) or 0.0 for trial in shown])
    is_pruned = np.array([trial.state is TrialState.PRUNED for trial in shown])
    sign = 1 if mode == "min" else -1
    order = sorted((int(i) for i in np.flatnonzero(~is_pruned)), key=lambda i: (sign * numbers[i], i))
    shades = np.full(len(shown), math.nan)
    shades[order] = np.linspace(0, 1, len(order)) if len(order) > 1 else 0.0
    found, different = parameters_of([trial.config for trial in shown])
    weights = {axis.name: influence(axis, np.where(is_pruned, math.nan, numbers)) for axis in found}
    kept = sorted(weights, key=lambda name: -weights[name])[:MAX_PARAMETERS]
    parameters = [axis for axis in found if axis.name in kept]
    axis = Axis(metric or "value", numbers, log=is_spread(numbers, 100 if mode == "min" else 10_000))
    curves_of, curves = _curves(
        trials, metric, {trial.index: shade for trial, shade in zip(shown, shades, strict=True)}
    )
    best = shown[order[0]]
    place = _place(best, [*(axis.name for axis in parameters), *different])
    return Picture(
        axis,
        mode,
        _limits(axis, sign),
        parameters or [Axis("trial", np.array([float(trial.index) for trial in shown]))],
        is_pruned,
        order,
        shades,
        curves,
        curves_of,
        sum(len(trial.reports) > 1 for trial in trials),
        f"{axis.name} {_over(found, different)}",
        [f"best: {numbers[order[0]]:.5g} in trial {best.index}{place}", _counts(trials, metric)],
    )


def spread(order: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` of what comes best first: half of them from the top, the others evenly from the rest."""
    if len(order) <= limit:
        return list(order)
    top = limit // 2
    rest = np.linspace(top, len(order) - 1, limit - top).astype(int)
    return [*order[:top], *(order[i] for i in rest)]


def _curves(trials: Sequence[Trial], metric: str | None, shades: dict[int, float]) -> tuple[str, list[Curve]]:
    """(name of what was reported, curves of it): the metric, or what most trials reported where it was not."""
    reporting = [trial for trial in trials if trial.reports]
    counts = Counter(name for trial in reporting for name in {*trial.reports[-1].metrics, *trial.reports[0].metrics})
    if not counts:
        return "", []
    name = metric if metric is not None and metric in counts else max(counts, key=lambda name: counts[name])
    found = []
    for trial in reporting:
        steps = [(report.step, float(report.metrics[name])) for report in trial.reports if name in report.metrics]
        if len(steps) > 1:
            some = np.array(steps)[np.unique(np.linspace(0, len(steps) - 1, _MAX_STEPS).astype(int))]
            shade = float(shades.get(trial.index, math.nan))
            found.append(Curve(some[:, 0], some[:, 1], shade, trial.state is TrialState.PRUNED))
    complete = sorted([curve for curve in found if not math.isnan(curve.shade)], key=lambda curve: curve.shade)
    others = [curve for curve in found if math.isnan(curve.shade)]
    room = max(MAX_CURVES - len(others), MAX_CURVES // 2)
    return name, [*spread(complete, room), *spread(others, MAX_CURVES - min(len(complete), room))]


def _limits(metric: Axis, sign: int) -> tuple[float, float]:
    """The least and the greatest number, but for a few that are far worse than all others and would hide those."""
    badness = sign * metric.scaled(metric.numbers)
    best, most, worst = np.quantile(badness, [0, 0.9, 1])
    if len(badness) >= 10 and worst - best > 5 * (most - best) > 0:
        worst = badness[badness <= best + 2 * (most - best)].max()
    low, high = sorted((sign * best, sign * worst))
    return (float(10**low), float(10**high)) if metric.log else (float(low), float(high))


def _is_finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _over(found: list[Axis], different: list[str]) -> str:
    """Over which parameters, and which of them are not drawn."""
    note = f" ({', '.join(different)}: nearly all different)" if different else ""
    if not found:
        return f"by trial{note or ': all have the same config'}"
    if len(found) > MAX_PARAMETERS:
        return f"by the {MAX_PARAMETERS} of {len(found)} parameters that explain most of it{note}"
    return f"by {_plural(len(found), 'parameter')}{note}"


def _place(trial: Trial, names: list[str]) -> str:
    """ " at lr=0.01, batch=32", the first of ``names`` first."""
    config = flattened(trial.config)
    parts = [f"{name}={short(text_of(config[name]), 40)}" for name in dict.fromkeys(names) if name in config]
    return f" at {short(', '.join(parts), 100)}" if parts else ""


def _counts(trials: Sequence[Trial], metric: str | None) -> str:
    """ "40 trials: 33 complete (2 without a finite number), 5 pruned, 2 failed"."""
    states = Counter(trial.state for trial in trials)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    odd = sum(not _is_finite(score(trial, metric)) for trial in complete)
    notes = {TrialState.COMPLETE: f" ({odd:,} without a finite number)" if odd else ""}
    parts = [f"{count:,} {state.lower()}{notes.get(state, '')}" for state in TrialState if (count := states[state])]
    return f"{_plural(len(trials), 'trial')}: {', '.join(parts)}"


def _nothing(trials: Sequence[Trial], metric: str | None) -> str:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not trials:
        return "there is nothing to plot: the sweep has no trials."
    if not complete:
        return f"there is nothing to plot yet: none of {_plural(len(trials), 'trial')} is complete."
    numbers = [score(trial, metric) for trial in complete]
    if any(number is not None for number in numbers):
        return f"there is nothing to plot: {metric or 'the value'} is NaN or infinite in all complete trials."
    keys = list(dict.fromkeys(key for trial in complete if isinstance(trial.value, dict) for key in trial.value))
    has = f"dicts with {', '.join(map(repr, keys[:8]))}" if keys else f"{type(complete[0].value).__name__}"
    wanted = f"metric={metric!r} is no number" if metric else "their value is no number"
    return f"there is nothing to plot: {wanted} in any complete trial; they returned {has}. Say metric=… of the sweep."


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"
