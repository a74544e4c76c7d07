"""All trials of a sweep: the one place where a trial changes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kalavai_nb.errors import PoolClosed
from kalavai_nb.state import Report, Trial, TrialState

LOOK_SECONDS = 0.25
# a curve is for looking at: beyond so many points every second one goes
MOST_REPORTS = 1024


class TrialList:
    """Trials by index, counted by state; whoever waits is woken by each change."""

    def __init__(self) -> None:
        self._trials: list[Trial] = []
        self._changed = threading.Condition()
        self.counts: Counter[TrialState] = Counter()

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, index: int) -> Trial:
        return self._trials[index]

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials))

    @property
    def finished(self) -> int:
        return sum(count for state, count in self.counts.items() if state.is_finished())

    def append(self, config: Any, **fields: Any) -> Trial:
        """One more, WAITING unless told otherwise."""
        with self._changed:
            trial = replace(Trial(len(self._trials), TrialState.WAITING, config), **fields)
            self._trials.append(trial)
            self.counts[trial.state] += 1
            self._changed.notify_all()
        return trial

    def change(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Give trials new values for some of their fields, all at once."""
        with self._changed:
            for index, fields in changes.items():
                before = self._trials[index]
                self._trials[index] = after = replace(before, **fields)
                self.counts[before.state] -= 1
                self.counts[after.state] += 1
            self._changed.notify_all()

    def add_report(self, index: int, report: Report) -> None:
        """One more report of this trial."""
        reports = (*self._trials[index].reports, report)
        if len(reports) > MOST_REPORTS:
            reports = reports[::2]
        self.change({index: {"reports": reports}})

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Block until ``ready``, which is asked after each change."""
        with self._changed:
            while not self._changed.wait_for(ready, timeout=LOOK_SECONDS):
                pass


def cut_off(trial: Trial, error: PoolClosed | None = None) -> dict[str, Any]:
    """What changes about a trial that will not go on by itself; nothing where it has ended."""
    return {} if trial.state.is_finished() else {"state": TrialState.STOPPED, "error": error}
