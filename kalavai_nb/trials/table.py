"""The trials of a sweep as a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kalavai_nb.state import Trial, TrialState

if TYPE_CHECKING:
    import pandas as pd


def trials_table(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per trial, indexed by its number; dicts of configs and values are spread out into columns.

    A config's name that a value has too is called ``config.name``. ``note`` is there where one trial has one.
    """
    import pandas as pd

    frame = pd.DataFrame([_row(trial) for trial in trials])
    if frame.empty:
        return frame
    if not frame["note"].any():
        frame = frame.drop(columns="note")
    last = [name for name in ("seconds", "device", "attempts", "error", "note") if name in frame]
    return frame.set_index("index")[[name for name in frame if name not in (*last, "index")] + last]


def _row(trial: Trial) -> dict[str, Any]:
    config = trial.config if isinstance(trial.config, dict) else {"config": trial.config}
    value = _value(trial)
    config = {f"config.{name}" if name in value else str(name): each for name, each in config.items()}
    error = f"{type(trial.error).__name__}: {trial.error}" if trial.error else ""
    fixed = {"seconds": trial.seconds, "device": trial.device, "attempts": trial.attempts, "error": error}
    return {"index": trial.index, "state": str(trial.state), **config, **value, **fixed, "note": trial.note}


def _value(trial: Trial) -> dict[str, Any]:
    if trial.state is TrialState.COMPLETE:
        return {str(k): v for k, v in trial.value.items()} if isinstance(trial.value, dict) else {"value": trial.value}
    return dict(trial.reports[-1].metrics) if trial.reports else {}
