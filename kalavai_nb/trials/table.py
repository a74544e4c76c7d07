"""The trials of a sweep as a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kalavai_nb.state import Trial, TrialState
from kalavai_nb.trials.trial_list import reason

if TYPE_CHECKING:
    import pandas as pd


RESERVED = {"index", "state", "seconds", "device", "attempts", "error", "note"}


def trials_table(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per trial, indexed by its number; dicts of configs and values are spread out into columns.

    A config's name that a value has too is called ``config.name``,
    and a value's name that stands for something else here ``value.name``. ``note`` is there where one trial has one.
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
    value = {f"value.{name}" if name in RESERVED else name: each for name, each in _value(trial).items()}
    taken = RESERVED | value.keys()
    config = {f"config.{name}" if str(name) in taken else str(name): each for name, each in config.items()}
    error = _plain(reason(trial)) if trial.error is not None else ""
    fixed = {"seconds": trial.seconds, "device": trial.device, "attempts": trial.attempts, "error": error}
    return {"index": trial.index, "state": str(trial.state), **config, **value, **fixed, "note": _plain(trial.note)}


def _plain(text: str) -> str:
    """Text that Arrow's columns take, too, which pandas makes where pyarrow is installed: no halves of characters."""
    return text.encode("utf-8", "backslashreplace").decode()


def _value(trial: Trial) -> dict[str, Any]:
    if trial.state is TrialState.COMPLETE:
        return {str(k): v for k, v in trial.value.items()} if isinstance(trial.value, dict) else {"value": trial.value}
    return dict(trial.reports[-1].metrics) if trial.reports else {}
