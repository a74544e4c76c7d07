"""How far a sweep is: what its own display and the picture of the whole pool have in common."""

from __future__ import annotations

from kalavai_nb.state import Trial, brief
from kalavai_nb.trials.trial_list import TrialList


def seconds_left(trials: TrialList, planned: int, *, seconds: float, had: int) -> float | None:
    """How long the rest takes at the pace of this run, which took ``seconds`` for all but ``had`` of the finished."""
    finished = trials.ended
    return seconds / (finished - had) * (planned - finished) if had < finished < planned else None


def value_text(trial: Trial, metric: str | None) -> str:
    """What a trial has come to: ``"accuracy=0.97"``."""
    value = trial.value.get(metric) if isinstance(trial.value, dict) and metric in trial.value else trial.value
    return f"{metric}={brief(value)}" if metric else brief(value)


def reasons(trials: TrialList) -> list[str]:
    """Why trials failed, the commonest first."""
    return [f"{count} × {error}" for error, count in trials.reasons.most_common() if count]
