"""A sweep: one function, many configs, a trial per free device, in fresh processes, until all are done.

A thread of the sweep asks the ledger for one device at a time, as long as trials wait, and starts a trial on each that
is granted. A trial's outcome comes home when it ends. An exception is an outcome: it leaves the others alone.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kalavai_nb.blobs import Packed
from kalavai_nb.capture import pack_argument
from kalavai_nb.engine import Engine, Event
from kalavai_nb.errors import PoolClosed, SweepError, TrialError
from kalavai_nb.failure import original_error
from kalavai_nb.state import Device, Need, Trial, TrialState
from kalavai_nb.sweep_display import SweepDisplay

if TYPE_CHECKING:
    import pandas as pd

# a trial whose worker was lost is tried once more, elsewhere
ATTEMPTS = 2
LOOK_SECONDS = 0.25


class Sweep:
    """The trials of one ``pool.map``, list-like: asking for a value waits for it.

    ``sweep[3]`` waits for trial 3 and returns it, ``for value in sweep`` gives values as they come in order, ``len`` is
    the number of configs. ■ while waiting stops the sweep and keeps what is done; ``resume()`` goes on.
    """

    def __init__(
        self,
        engine: Engine,
        fn: Callable[[Any], Any],
        configs: list[Any],
        *,
        metric: str | None = None,
        mode: str = "min",
        show: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} cannot be meant: wanted 'min' or 'max'")
        self.name = getattr(fn, "__name__", type(fn).__name__)
        self.metric, self.mode = metric, mode
        self._engine = engine
        self._fn: Packed = pack_argument("the function", fn)
        self._configs = [pack_argument(f"config {index}", config) for index, config in enumerate(configs)]
        self._trials = [Trial(index, TrialState.WAITING, config) for index, config in enumerate(configs)]
        self._changed = threading.Condition()
        self._display = SweepDisplay(self.name) if show else None
        self._run = ""
        self._thread: threading.Thread | None = None
        self._begin()

    # what there is, without waiting

    @property
    def trials(self) -> list[Trial]:
        """All trials as they are now."""
        return list(self._trials)

    @property
    def failed(self) -> list[Trial]:
        """The trials that have failed so far."""
        return [trial for trial in self._trials if trial.state is TrialState.FAILED]

    @property
    def best(self) -> Trial:
        """The complete trial with the best value so far. Raises SweepError where there is none."""
        complete = [trial for trial in self._trials if trial.state is TrialState.COMPLETE]
        if not complete:
            raise SweepError("no trial of this sweep is complete, so none is best")
        return (min if self.mode == "min" else max)(complete, key=self._score)

    def table(self) -> pd.DataFrame:
        """One row per trial: state, config, value, seconds, device, attempts and error, with dicts spread out."""
        import pandas as pd

        rows = []
        for trial in self._trials:
            config = trial.config if isinstance(trial.config, dict) else {"config": trial.config}
            value = trial.value if isinstance(trial.value, dict) else {"value": trial.value}
            if trial.state is not TrialState.COMPLETE:
                value = {}
            fixed = {"seconds": trial.seconds, "device": trial.device, "attempts": trial.attempts}
            error = f"{type(trial.error).__name__}: {trial.error}" if trial.error else None
            rows.append({"index": trial.index, "state": str(trial.state), **config, **value, **fixed, "error": error})
        frame = pd.DataFrame(rows)
        return frame.set_index("index") if rows else frame

    # waiting

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, index: int) -> Trial:
        self._wait(lambda: self._trials[index].state.is_finished())
        return self._trials[index]

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self._value(self[index])

    @property
    def values(self) -> list[Any]:
        """All values, in the order of the configs; waits for them. Raises one SweepError that names all failures."""
        self.wait()
        if bad := [trial for trial in self._trials if trial.state is not TrialState.COMPLETE]:
            raise SweepError(_failures(self.name, len(self), bad)) from bad[0].error
        return [trial.value for trial in self._trials]

    def wait(self) -> Sweep:
        """Wait until every trial is finished. ■ stops the sweep."""
        self._wait(lambda: all(trial.state.is_finished() for trial in self._trials))
        return self

    # control

    def stop(self) -> None:
        """Stop the trials that run and start no more; what is done stays. Idempotent."""
        self._run = ""
        # its thread ends what runs; only then does nobody else change a trial
        if self._thread:
            self._thread.join()
        for index, trial in enumerate(self._trials):
            if not trial.state.is_finished():
                self._set(index, state=TrialState.STOPPED)
        self._draw(last=True)

    def resume(self) -> Sweep:
        """Go on with the trials that were stopped."""
        for index, trial in enumerate(self._trials):
            if trial.state is TrialState.STOPPED:
                self._set(index, state=TrialState.WAITING)
        if not self._run:
            self._begin()
        return self

    def abandon(self) -> None:
        """The pool is being closed: end without asking anything of it."""
        self._run = ""

    def __repr__(self) -> str:
        counts = {state: sum(trial.state is state for trial in self._trials) for state in TrialState}
        parts = ", ".join(f"{count} {state.lower()}" for state, count in counts.items() if count)
        return f"<Sweep of {self.name} over {len(self)} configs: {parts}>"

    # inside

    def _begin(self) -> None:
        self._run = secrets.token_hex(4)
        if self._display:
            self._display.draw(self._trials)
        self._thread = threading.Thread(target=self._drive, args=(self._run,), name="kalavai-sweep", daemon=True)
        self._thread.start()

    def _drive(self, run: str) -> None:
        """The sweep's own thread: a lease per slot, a trial per lease, until nothing waits or runs."""
        events: queue.Queue[Event] = queue.Queue()
        running: dict[int, tuple[Device, str]] = {}
        need, request = Need(self._engine.owner, 1, kind="trial"), ""
        self._engine.listen(run, events.put)
        self._engine.listen("", events.put)
        try:
            while self._run == run and (running or self._next_waiting() is not None):
                if not request and self._next_waiting() is not None:
                    request = self._engine.request(need, events.put)
                with contextlib.suppress(queue.Empty):
                    event = events.get(timeout=LOOK_SECONDS)
                    if event["kind"] == "refused":
                        raise PoolClosed(event["text"])
                    if event["kind"] == "grant":
                        self._engine.unlisten(request, events.put)
                        request = ""
                        self._start(run, event["leases"][0], running)
                    elif event["kind"] == "trial":
                        self._end(event["index"], event["end"], running)
                    elif event["kind"] == "lost":
                        self._lose(event["worker"], running)
                self._draw()
        except PoolClosed as error:
            self._fail_rest(error)
        finally:
            self._engine.unlisten(run, events.put)
            self._engine.unlisten("", events.put)
            with contextlib.suppress(PoolClosed):
                if request:
                    self._engine.withdraw(request, need, events)
                workers = {device.worker for device, _ in running.values()}
                self._engine.tell([(worker, {"op": "kn_end_trials", "run": run}) for worker in workers])
                self._engine.release([lease for _, lease in running.values()])
            if self._run == run:
                self._run = ""
            self._draw(last=True)

    def _start(self, run: str, lease: dict[str, Any], running: dict[int, tuple[Device, str]]) -> None:
        index = self._next_waiting()
        if index is None:
            self._engine.release([lease["id"]])
            return
        device = next(d for d in self._engine.snapshot().devices if d.id == lease["devices"][0])
        running[index] = (device, lease["id"])
        self._set(index, state=TrialState.RUNNING, device=str(device), attempts=self._trials[index].attempts + 1)
        self._engine.place([self._fn, self._configs[index]], [device])
        blobs = [[packed.blob.digest, list(packed.blob.sizes)] for packed in (self._fn, self._configs[index])]
        message = {
            "op": "kn_trial",
            "owner": self._engine.owner,
            "run": run,
            "index": index,
            "fn": blobs[0],
            "config": blobs[1],
        }
        self._engine.tell([(device.worker, message)])

    def _end(self, index: int, end: dict[str, Any], running: dict[int, tuple[Device, str]]) -> None:
        if index not in running:
            return
        device, lease = running.pop(index)
        fields: dict[str, Any] = {"log": end.get("log", ""), "seconds": end.get("seconds")}
        try:
            if end["status"] == "ok":
                fields |= {"state": TrialState.COMPLETE, "value": self._engine.fetch(device, end["value"])}
            else:
                fields |= {"state": TrialState.FAILED, "error": _error_of(end)}
        except Exception as error:  # a value that cannot be rebuilt here is that trial's failure, not the sweep's
            fields |= {"state": TrialState.FAILED, "error": error}
        self._engine.release([lease])
        self._set(index, **fields)

    def _lose(self, worker: str, running: dict[int, tuple[Device, str]]) -> None:
        """Its worker is gone: the trial waits again, or has failed where that happened before."""
        for index in [index for index, (device, _) in running.items() if device.worker == worker]:
            device, _ = running.pop(index)
            if self._trials[index].attempts < ATTEMPTS:
                self._set(index, state=TrialState.WAITING)
            else:
                error = TrialError(f"its worker was lost {ATTEMPTS} times, last on {device}")
                self._set(index, state=TrialState.FAILED, error=error)

    def _fail_rest(self, error: PoolClosed) -> None:
        for index, trial in enumerate(self._trials):
            if not trial.state.is_finished():
                self._set(index, state=TrialState.STOPPED, error=error)

    def _next_waiting(self) -> int | None:
        return next((trial.index for trial in self._trials if trial.state is TrialState.WAITING), None)

    def _set(self, index: int, **changes: Any) -> None:
        """The only place where a trial changes."""
        with self._changed:
            self._trials[index] = replace(self._trials[index], **changes)
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        try:
            with self._changed:
                while not self._changed.wait_for(ready, timeout=LOOK_SECONDS):
                    pass
        except KeyboardInterrupt:
            self.stop()
            raise
        if self._display and self._thread and all(trial.state.is_finished() for trial in self._trials):
            # the last picture is drawn before the cell that waited goes on
            self._thread.join(timeout=5)

    def _value(self, trial: Trial) -> Any:
        if trial.state is not TrialState.COMPLETE:
            raise SweepError(_failures(self.name, len(self), [trial])) from trial.error
        return trial.value

    def _score(self, trial: Trial) -> Any:
        if self.metric is None:
            return trial.value
        return trial.value[self.metric]

    def _draw(self, *, last: bool = False) -> None:
        if self._display:
            self._display.draw_if_due(self._trials, last=last)


def _error_of(end: dict[str, Any]) -> BaseException:
    if end["status"] == "died":
        why = " because the machine ran out of memory" if end["out_of_memory"] else ""
        said = f" It wrote last:\n{end['log'].strip()[-500:]}" if end.get("log", "").strip() else ""
        return TrialError(f"its process {end['how']}{why}.{said}")
    error = original_error(end)
    return error if not isinstance(error, Exception) or error.args else TrialError(f"{end['ename']}: {end['evalue']}")


def _failures(name: str, count: int, bad: list[Trial]) -> str:
    """All failures in one sentence, equal ones folded."""
    groups: dict[str, list[int]] = {}
    for trial in bad:
        what = f"{type(trial.error).__name__}: {trial.error}" if trial.error else str(trial.state).lower()
        groups.setdefault(what, []).append(trial.index)
    lines = [f"trial{'s' * (len(i) > 1)} {', '.join(map(str, i))}: {what}" for what, i in groups.items()]
    return (
        f"{len(bad)} of {count} trials of {name} have no value.\n"
        + "\n".join(lines)
        + "\nsweep.table() has all the others."
    )
