"""From a function and its configs to a sweep that runs: what it carries, what it has done before, what it says."""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kalavai_nb.announce import say
from kalavai_nb.capture import human_bytes, pack_by_value
from kalavai_nb.closure.carried import large
from kalavai_nb.closure.culprit import why_not
from kalavai_nb.closure.fingerprint import changed, fingerprint
from kalavai_nb.closure.stale import stale_modules
from kalavai_nb.engine import Engine
from kalavai_nb.errors import NotEnoughDevices, OptionError, PoolClosed, SendError
from kalavai_nb.search.search import Search, make_search
from kalavai_nb.state import Device, TrialState
from kalavai_nb.trials.dispatch import Dispatch
from kalavai_nb.trials.display import SweepDisplay
from kalavai_nb.trials.entries import Recorded, Unreadable
from kalavai_nb.trials.journal import Journal
from kalavai_nb.trials.options import MapOptions
from kalavai_nb.trials.orders import Function
from kalavai_nb.trials.pool import HasEngine
from kalavai_nb.trials.record import Record
from kalavai_nb.trials.sweep import Sweep
from kalavai_nb.trials.trial_list import TrialList

# a function that carries less is not worth a line
SAY_FROM_BYTES = 1_000_000


@dataclass(frozen=True)
class Proposal:
    """What ``pool.sweep`` is to search, and how, as it was given; no ``trials`` means all there are."""

    space: Mapping[str, Any]
    search: Any
    stop: Any
    start: Sequence[Mapping[str, Any]]
    trials: int | None

    def make(self, options: MapOptions, directory: Path | None = None) -> Search:
        """The search. Raises OptionError or MissingExtra.

        That of a named sweep keeps its study in a file in ``directory``, where optuna-dashboard can look at it.
        """
        name = options.name or ""
        file = f"{re.sub(r'[^A-Za-z0-9-]+', '_', name)[:60]}-{zlib.crc32(name.encode()):08x}" if name else ""
        return make_search(
            self.space,
            search=self.search,
            stop=self.stop,
            seed=options.seed,
            metrics=options.metrics,
            modes=options.modes,
            start=self.start,
            trials=self.trials,
            name=options.name or "sweep",
            path=directory / f"{file}.log" if directory and file else None,
        )


def launch(
    engine: Engine,
    journal: Journal,
    fn: Callable[..., Any],
    options: MapOptions,
    *,
    configs: list[Any] | None = None,
    proposal: Proposal | None = None,
) -> Sweep:
    """Begin a sweep over configs, or over what a search proposes.

    Raises OptionError and MissingExtra for a search that cannot be meant or had, SendError for what cannot be pickled,
    NotEnoughDevices where no device is like what a trial needs.
    """
    search = proposal.make(options, journal.directory / "studies") if proposal else None
    verdicts = bool(proposal and proposal.stop is not None)
    planned = search.size if search else None
    function = read_function(fn)
    code = fingerprint(fn)
    if options.name and not options.resume:
        journal.forget(options.name)
    before = journal.read(options.name) if options.name else None
    id, name = journal.begin(options.name, function.name, options.metrics, options.modes, code)
    options = replace(options, name=name)
    record = Record(journal, id, TrialList(options.metric, options.mode))

    def begin(pool: HasEngine | None) -> Dispatch:
        connection = pool.engine if pool else engine
        if connection.closed:
            raise PoolClosed("the pool of this sweep is gone. Open another one: pool = kn.Pool(); sweep.resume(pool).")
        title = name if name.startswith(f"{function.name}-") else f"{name} ({function.name})"
        display = SweepDisplay(title, record.trials, options.metrics) if options.show else None

        def draw(note: str, last: bool) -> None:
            if display:
                display.draw(planned=planned or 0, note=note, last=last)

        # in the cell that asks for it, so that this is where it stays
        draw("", False)
        return Dispatch(connection, function, options, record, search, verdicts, draw)

    sweep = Sweep(
        name,
        function.name,
        record,
        metrics=options.metrics,
        modes=options.modes,
        launch=begin,
        make_study=(lambda: study_of(search, proposal, options, record.trials)) if search and proposal else None,
        planned=planned or 0,
    )
    try:
        if before:
            record.recall(before.entries)
        if search:
            _recall(search, record, before, planned)
        else:
            record.add(configs or [], only=True)
        if options.show:
            _say_what_goes(fn, function, engine.snapshot().devices)
            _say_what_is_kept(function.name, name, record.trials, before, code)
        return sweep.start()
    except (SendError, NotEnoughDevices):
        # a sweep that never began is not worth a place on the shelf
        if before is None:
            journal.forget(name)
        raise


def study_of(search: Search, proposal: Proposal, options: MapOptions, trials: TrialList) -> Any:
    """The search's own optuna.Study; one made of its trials for a search that does without Optuna."""
    own = getattr(search, "study", None)
    if own is not None:
        return own
    told: Any = replace(proposal, search="tpe", trials=None).make(options)
    for trial in trials:
        told.recall(trial)
    return told.study


def restored(journal: Journal, name: str) -> Sweep | None:
    """A sweep as the journal has it, to look at; nothing runs."""
    recorded = journal.read(name)
    if recorded is None:
        return None
    trials = TrialList(recorded.metrics[0] if len(recorded.metrics) == 1 else None, recorded.modes[0])
    record = Record(journal, recorded.id, trials)
    record.show(recorded.entries)
    return Sweep(recorded.name, recorded.fn, record, metrics=recorded.metrics, modes=recorded.modes)


def read_function(fn: Callable[..., Any]) -> Function:
    """The function packed, and whether it wants the trial. Raises OptionError or SendError."""
    if not callable(fn):
        raise OptionError(f"a sweep wants a function that takes a config, got a {type(fn).__name__}.")
    name = getattr(fn, "__name__", type(fn).__name__).strip("<>")
    wants_trial = takes_trial(fn)
    try:
        return Function(name, pack_by_value(fn), wants_trial)
    except Exception as error:
        raise SendError(f"{name} cannot be sent to the pool: {why_not(fn, error)}") from None


def takes_trial(fn: Callable[..., Any]) -> bool:
    """Whether ``fn`` is to be called with the trial as well: it has a second parameter without a default, or ``trial``.

    Raises OptionError where it cannot be called with one or two arguments.
    """
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = [p for p in positional if p.default is p.empty]
    unmet = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if (not positional and not starred) or len(needed) > 2 or unmet:
        names = ", ".join(p.name for p in parameters) or "nothing"
        raise OptionError(
            f"a sweep calls its function as fn(config) or fn(config, trial), but this one takes {names}. "
            "functools.partial(fn, …) can fill in the others."
        )
    return len(needed) == 2 or (len(positional) > 1 and positional[1].name == "trial")


def _recall(search: Search, record: Record, before: Recorded | None, planned: int | None) -> None:
    """Go on with the trials of an earlier session: those that ended are known, the others run under their index."""
    if before is None:
        return
    earlier = [e.trial.config for e in before.entries if not isinstance(e.trial.config, Unreadable)][:planned]
    for index in record.add(earlier, only=True):
        trial = record.trials[index]
        search.recall(trial) if trial.state.is_finished() else search.adopt(trial)


def _say_what_goes(fn: Callable[..., Any], function: Function, devices: tuple[Device, ...]) -> None:
    for module in stale_modules(fn):
        say(f"{module} was edited after its import, and goes as it was imported; importlib.reload({module}) reads it")
    if function.packed.blob.total_bytes < SAY_FROM_BYTES:
        return
    names = ", ".join(f"{name} ({human_bytes(size)})" for name, size in large(fn, SAY_FROM_BYTES)[:5])
    machines, workers = len({device.machine for device in devices}), len(devices)
    what = names or f"{human_bytes(function.packed.blob.total_bytes)} of data"
    where = f"{workers} worker{'s' * (workers != 1)}" + (f" on {machines} machines" if machines > 1 else "")
    say(f"{function.name} captures {what}, sent once to {where}")


def _say_what_is_kept(fn: str, name: str, trials: TrialList, before: Recorded | None, code: dict[str, str]) -> None:
    kept = trials.counts[TrialState.COMPLETE] + trials.counts[TrialState.PRUNED]
    if not before or not kept:
        return
    if what := changed(before.code, code):
        parts = ", ".join("its code" if part == "code" else part for part in what)
        say(
            f"{fn} has changed since {name!r} was run before ({parts}). {kept} results of the earlier one are kept; "
            "resume=False runs all again."
        )
    else:
        say(f"{name!r}: {kept} of {len(trials)} trials were done before and are not run again")
