"""All trials of a sweep: the one place where a trial changes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kalavai_nb.scores import ranked
from kalavai_nb.state import Report, Trial, TrialState

LOOK_SECONDS = 0.25
# a curve is for looking at: beyond so many points every second one goes
MOST_REPORTS = 1024


class TrialList:
    """Trials by index; whoever waits is woken by each change.

    What a display shows is kept up as trials change, so that looking at ten thousand costs no more than looking at ten:
    how many there are in each ``state``, how many failed for each reason, which ones run, and which one is best.
    """

    def __init__(self, metric: str | None = None, mode: str = "min") -> None:
        self._trials: list[Trial] = []
        self._changed = threading.Condition()
        self._metric, self._mode = metric, mode
        self.counts: Counter[TrialState] = Counter()
        self.reasons: Counter[str] = Counter()
        self.running: dict[int, None] = {}
        self.best: Trial | None = None

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, index: int) -> Trial:
        return self._trials[index]

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials))

    @property
    def ended(self) -> int:
        """How many have ended by themselves, well or not; one that was stopped can go on."""
        return sum(self.counts[state] for state in (TrialState.COMPLETE, TrialState.FAILED, TrialState.PRUNED))

    def append(self, config: Any, **fields: Any) -> Trial:
        """One more, WAITING unless told otherwise."""
        with self._changed:
            trial = replace(Trial(len(self._trials), TrialState.WAITING, config), **fields)
            self._trials.append(trial)
            self._count(trial, 1)
            self._changed.notify_all()
        return trial

    def change(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Give trials new values for some of their fields, all at once."""
        with self._changed:
            for index, fields in changes.items():
                before = self._trials[index]
                self._trials[index] = after = replace(before, **fields)
                self._count(before, -1)
                self._count(after, 1)
            self._changed.notify_all()

    def add_report(self, index: int, report: Report) -> None:
        """One more report of this trial. Another attempt that reports earlier steps again says them anew."""
        before = self._trials[index].reports
        if before and before[-1].step >= report.step:
            before = tuple(each for each in before if each.step < report.step)
        reports = (*before, report)
        if len(reports) > MOST_REPORTS:
            reports = (*reports[:-1:2], reports[-1])
        self.change({index: {"reports": reports}})

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Block until ``ready``, which is asked after each change."""
        with self._changed:
            while not self._changed.wait_for(ready, timeout=LOOK_SECONDS):
                pass

    def _count(self, trial: Trial, by: int) -> None:
        self.counts[trial.state] += by
        if trial.error is not None:
            self.reasons[reason(trial).splitlines()[0]] += by
        if trial.state is TrialState.RUNNING and by > 0:
            self.running[trial.index] = None
        else:
            self.running.pop(trial.index, None)
        if by > 0 and (number := ranked(trial, self._metric)) is not None:
            best = ranked(self.best, self._metric) if self.best else None
            if best is None or (number < best if self._mode == "min" else number > best):
                self.best = trial


def reason(trial: Trial) -> str:
    """Why a trial has no value, on one line where that is possible."""
    if trial.error is None:
        return str(trial.state).lower()
    try:
        return f"{type(trial.error).__name__}: {trial.error}"
    except Exception:  # its own code
        return f"{type(trial.error).__name__}"
