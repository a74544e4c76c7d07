"""How good a trial is: the number that ``metric=`` means, wherever the function put it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

from kalavai_nb.errors import OptionError
from kalavai_nb.state import Trial, TrialState

MODES = ("min", "max")


def score(trial: Trial, metric: str | None) -> float | None:
    """The trial's number under ``metric``: in the dict it returned, else what it returned, else its last report.

    None where there is no such number. NaN is a number here.
    """
    value = trial.value
    if isinstance(value, dict):
        return _number(value[metric]) if metric in value else _last_reported(trial, metric)
    number = _number(value)
    return _last_reported(trial, metric) if number is None else number


def no_number(metric: str | None, trial: Trial) -> str:
    """A sentence for a complete trial that has no number to compare."""
    value = trial.value
    had = f"a dict with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, dict) else f"{value!r:.60}"
    reported = ", ".join(dict.fromkeys(name for report in trial.reports for name in report.metrics))
    heard = f" and reported {reported}" if reported else ""
    wanted = f"no number under metric={metric!r}" if metric else "no number; say with metric= which one counts"
    return f"trial {trial.index} gave {wanted}: it returned {had}{heard}."


def front_of(trials: Iterable[Trial], metrics: Sequence[str], modes: Sequence[str]) -> list[Trial]:
    """The complete trials that no other one beats in one metric without losing in another (the Pareto front)."""
    signs = [1 if mode == "min" else -1 for mode in modes]
    scored = []
    for trial in trials:
        numbers = [ranked(trial, metric) for metric in metrics or (None,)]
        if None not in numbers:
            scored.append((tuple(s * n for s, n in zip(signs, numbers, strict=True) if n is not None), trial))
    return [
        trial
        for own, trial in scored
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other, _ in scored)
    ]


def ranked(trial: Trial, metric: str | None) -> float | None:
    """The trial's number if it may be compared: the trial is complete and the number is not NaN."""
    if trial.state is not TrialState.COMPLETE:
        return None
    number = score(trial, metric)
    return None if number is None or math.isnan(number) else number


def check_mode(mode: str) -> None:
    """Raise OptionError for a mode that cannot be meant."""
    if mode not in MODES:
        raise OptionError(f"mode={mode!r} cannot be meant: wanted 'min' or 'max'.")


def _last_reported(trial: Trial, metric: str | None) -> float | None:
    numbers = (_number(report.metrics[metric]) for report in reversed(trial.reports) if metric in report.metrics)
    return next(numbers, None) if metric is not None else None


def _number(value: Any) -> float | None:
    """A number, NumPy scalar or tensor of one element as a float; None for all else."""
    if isinstance(value, (str, bytes)) or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except Exception:  # an array of several numbers, an integer beyond all floats, somebody's own type
        return None
