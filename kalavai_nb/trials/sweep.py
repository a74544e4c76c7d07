"""A sweep as the notebook holds it: list-like, asked and told while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, cast, overload

from kalavai_nb.engine import Engine
from kalavai_nb.errors import PoolClosed, SweepError
from kalavai_nb.failure import interrupted
from kalavai_nb.scores import front_of, no_number
from kalavai_nb.screen import publish
from kalavai_nb.snapshot import SweepState
from kalavai_nb.state import Trial, TrialState, Value
from kalavai_nb.terminal import TERMINAL
from kalavai_nb.trials.configs import read_configs
from kalavai_nb.trials.dispatch import Dispatch
from kalavai_nb.trials.failures import failures
from kalavai_nb.trials.look import look
from kalavai_nb.trials.pool import Displays, HasEngine
from kalavai_nb.trials.record import Record
from kalavai_nb.trials.table import trials_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LOOK_SECONDS = 0.25
_STOPPED = "the sweep was stopped; what is done is kept, and resume() of it goes on."


class Sweep(Generic[Value]):
    """The trials of one ``pool.map`` or ``pool.sweep``, list-like: asking for a value waits for it.

    ``sweep[3]`` waits for trial 3 and returns it, ``for value in sweep`` gives values in order as they come, ``len`` is
    the number of trials so far. ■ while waiting stops the sweep and keeps what is done; ``resume()`` goes on. All else
    answers at once, also while trials run.
    """

    def __init__(
        self,
        name: str,
        fn: str,
        record: Record,
        *,
        metrics: tuple[str, ...],
        modes: tuple[str, ...],
        launch: Callable[[HasEngine | None], Dispatch] | None = None,
        make_study: Callable[[], Any] | None = None,
        planned: int = 0,
    ) -> None:
        self.name, self.fn = name, fn
        self.metrics, self.modes = metrics, modes
        self._record, self._trials = record, record.trials
        self._launch, self._make_study, self._planned = launch, make_study, planned
        self._dispatch: Dispatch | None = None
        self._taken = 0
        # the pool that began it sets this
        self.find_panel: Callable[[], Displays | None] = lambda: None

    # what there is, without waiting

    @property
    def trials(self) -> list[Trial[Value]]:
        """All trials as they are now."""
        return list(self._trials)

    @property
    def failed(self) -> list[Trial[Value]]:
        """The trials that have failed so far."""
        return [trial for trial in self._trials if trial.state is TrialState.FAILED]

    @property
    def best(self) -> Trial[Value]:
        """The complete trial with the best value so far. Raises SweepError where there is none."""
        if len(self.metrics) > 1:
            raise SweepError(
                f"with the metrics {', '.join(self.metrics)}, no one trial is best: see sweep.best_trials."
            )
        if best := self._trials.best:
            return best
        metric = self.metrics[0] if self.metrics else None
        complete = [trial for trial in self._trials if trial.state is TrialState.COMPLETE]
        if not complete:
            raise SweepError("no trial of this sweep is complete, so none is best; table() shows how they ended.")
        raise SweepError(f"no trial is best: {no_number(metric, complete[0])}")

    @property
    def best_trials(self) -> list[Trial[Value]]:
        """The complete trials that no other one beats in all metrics (the Pareto front)."""
        return front_of(self._trials, self.metrics, self.modes)

    def table(self) -> pd.DataFrame:
        """One row per trial: state, config, value, seconds, device, attempts and error, with dicts spread out.

        Trials without a value show what they reported last. Never raises.
        """
        return trials_table(self._trials)

    def plot(self) -> Figure:
        """The metric against each parameter, parallel coordinates, and learning curves where trials reported.

        Raises SweepError where there is nothing to plot yet, MissingExtra without Matplotlib.
        """
        from kalavai_nb.plot.plot import plot

        return plot(self.trials, self.metrics[0] if self.metrics else None, self.modes[0])

    def log(self, index: int) -> str:
        """What a trial has printed, also while it runs (`Trial.log` has it at the end). Raises IndexError."""
        index = self._index(index)
        if self._dispatch and not self._dispatch.is_over:
            return self._dispatch.log_of(index)
        return self._trials[index].log

    def checkpoint(self, index: int) -> Any:
        """What a trial saved last with ``trial.save``. Raises SweepError where it saved nothing."""
        index = self._index(index)
        while (content := self._record.checkpoint(index)) is not None:
            try:
                return content.load()
            except FileNotFoundError:
                if content is self._record.checkpoint(index):
                    raise
                # the next one has just come in its place
        raise SweepError(f"trial {index} has saved no checkpoint; trial.save(…) in its function saves one.")

    @property
    def study(self) -> Any:
        """The optuna.Study of this search, for Optuna's own plots and tools. Raises SweepError for a ``pool.map``."""
        if self._make_study is None:
            raise SweepError("only a pool.sweep that this notebook has begun has a study; pool.map searches nothing.")
        return self._make_study()

    # waiting

    def __len__(self) -> int:
        return len(self._trials)

    @overload
    def __getitem__(self, index: int) -> Trial[Value]: ...

    @overload
    def __getitem__(self, index: slice) -> list[Trial[Value]]: ...

    def __getitem__(self, index: int | slice) -> Trial[Value] | list[Trial[Value]]:
        if isinstance(index, int):
            self._has(index)
        indices = range(len(self))[index] if isinstance(index, slice) else [self._index(index)]
        self._wait(lambda: all(self._trials[each].state.is_finished() for each in indices))
        trials = [self._trials[each] for each in indices]
        return trials if isinstance(index, slice) else trials[0]

    def __iter__(self) -> Iterator[Value]:
        index = 0
        while self._has(index):
            trial = self[index]
            if _has_no_value(trial):
                raise SweepError(failures(self.fn, len(self), [trial])) from trial.error
            yield cast(Value, trial.value)
            index += 1

    @property
    def values(self) -> list[Value]:
        """All values, in the order of the configs; waits for them. That of a pruned trial is None.

        Raises one SweepError that names all trials that failed or were stopped.
        """
        self.wait()
        if bad := list(filter(_has_no_value, self._trials)):
            raise SweepError(failures(self.fn, len(self), bad)) from bad[0].error
        return [cast(Value, trial.value) for trial in self._trials]

    def wait(self) -> Sweep[Value]:
        """Wait until nothing waits or runs. ■ stops the sweep. What failed is in ``failed``.

        Raises SweepError where the sweep was cut off, such as by the end of its pool.
        """
        with TERMINAL.waiting():
            self._wait(lambda: self._is_over)
        if self._dispatch and self._dispatch.error:
            raise SweepError(self._cut_off(self._dispatch.error)) from self._dispatch.error
        return self

    # control

    def stop(self, index: int | None = None) -> None:
        """Stop the trials that run and start no more; what is done stays. With ``index``, stop that trial alone.

        A trial is told at its next report, interrupted, and killed where it has not ended after 5 s; ■ meanwhile kills
        it at once. Idempotent.
        """
        chosen = None if index is None else self._index(index)
        if self._dispatch is None or self._dispatch.is_over:
            return
        self._dispatch.stop(chosen)
        if chosen is not None:
            self._wait(lambda: self._trials[chosen].state.is_finished())
            return
        try:
            self._dispatch.join()
        except KeyboardInterrupt:
            self._dispatch.stop()
            self._dispatch.join()

    def resume(self, pool: HasEngine | None = None, *, failed: bool = False) -> Sweep[Value]:
        """Go on with the trials that were stopped, and with ``failed`` those that failed too.

        ``pool`` is where, if the one it began on is gone. Raises SweepError where only the journal has this sweep.
        """
        if self._launch is None:
            raise SweepError(
                f"the journal has what became of {self.name!r}, not its function: run the cell that began it again, "
                f"with name={self.name!r}; what is done is not run again."
            )
        if self._dispatch and self._dispatch.is_ending:
            self._dispatch.join()
        if not self._is_over:
            return self
        states = (TrialState.STOPPED, TrialState.FAILED) if failed else (TrialState.STOPPED,)
        waiting = [trial.index for trial in self._trials if trial.state in states]
        self._trials.change({index: {"state": TrialState.WAITING, "error": None} for index in waiting})
        self._begin(pool)
        return self

    def add(self, configs: Iterable[Any]) -> Sweep[Value]:
        """More configs, at the end; they are run like the others. Raises SweepError for a ``pool.sweep``."""
        if self._launch is None or self._make_study is not None:
            raise SweepError("configs can be added to a pool.map of this notebook; pool.sweep takes them as start=.")
        indices = self._record.add(read_configs(configs))
        if self._dispatch and not self._dispatch.is_over:
            if self._dispatch.more(indices):
                return self
            self._dispatch.join()
            self._trials.change({index: {"state": TrialState.WAITING, "error": None} for index in indices})
        self._begin(None)
        return self

    def look(self, engine: Engine) -> SweepState | None:
        """What others see of it on the pool of this connection, if it is there."""
        if self._dispatch is None or self._dispatch.engine is not engine:
            return None
        return look(self.name, self.fn, self.metrics, self._trials, self._planned, self._dispatch)

    def abandon(self, engine: Engine) -> None:
        """The pool of this connection is being closed: end what runs there without asking anything of it."""
        if self._dispatch and self._dispatch.engine is engine:
            self._dispatch.abandon()

    def start(self) -> Sweep[Value]:
        """Begin to run what waits. Raises NotEnoughDevices where the pool can never give what a trial needs."""
        if self._trials.ended < len(self) or self._make_study is not None:
            self._begin(None)
        return self

    @property
    def is_running(self) -> bool:
        """Whether trials run or wait to be run."""
        return not self._is_over

    def __repr__(self) -> str:
        counts = self._trials.counts
        parts = ", ".join(f"{counts[state]} {state.lower()}" for state in TrialState if counts[state])
        return f"<Sweep {self.name!r} of {self.fn}, {len(self)} trials: {parts or 'none yet'}>" + (
            f"\n{self._record.trouble}" if self._record.trouble else ""
        )

    def _ipython_display_(self) -> None:
        """While it runs, live, with a button that stops it; else in words."""
        if panel := self.find_panel():
            panel.show()
        else:
            publish({"text/plain": repr(self)}, {})

    # inside

    def _index(self, index: int) -> int:
        """The place of a trial, counted from the end where it is negative. Raises IndexError."""
        try:
            return range(len(self))[index]
        except (IndexError, TypeError):
            last = len(self) - 1
            raise IndexError(f"there is no trial {index!r}: they are numbered from 0 to {last}") from None

    @property
    def _is_over(self) -> bool:
        return self._dispatch is None or self._dispatch.is_over

    def _cut_off(self, error: BaseException) -> str:
        done = self._trials.ended
        match error:
            case PoolClosed():
                go_on = "pool = kn.Pool(); sweep.resume(pool) does the rest"
            case SweepError():
                go_on = "run it again with a metric that it returns"
            case _:
                go_on = "sweep.resume() does the rest"
        where = self._record.trouble or f"here and in the journal as {self.name!r}"
        kept = f"{done} of {len(self)} trials have ended and are kept, {where}"
        return f"{self.fn} was cut off: {error}\n{kept}; {go_on}."

    def _begin(self, pool: HasEngine | None) -> None:
        assert self._launch is not None
        self._dispatch = self._launch(pool)
        try:
            self._dispatch.start()
        except KeyboardInterrupt as stop:
            self.stop()
            raise interrupted(stop, _STOPPED) from None

    def _has(self, index: int) -> bool:
        """Whether there is such a trial, or will be."""
        self._wait(lambda: index < len(self) or self._is_over)
        return index < len(self)

    def _wait(self, ready: Callable[[], bool]) -> None:
        try:
            self._trials.wait_for(lambda: ready() or self._is_over)
            if self._is_over and self._dispatch:
                # the last picture is drawn before the cell that waited goes on
                self._dispatch.join(LOOK_SECONDS)
        except KeyboardInterrupt as stop:
            self.stop()
            raise interrupted(stop, _STOPPED) from None


def _has_no_value(trial: Trial) -> bool:
    return trial.state not in (TrialState.COMPLETE, TrialState.PRUNED)
