"""A search by Optuna, by ask and tell in this process: its samplers propose, its pruners prune, its study remembers.

Importing this needs Optuna; `kalavai_nb.search.make_search` does so where a search wants it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from kalavai_nb.errors import OptionError
from kalavai_nb.scores import score
from kalavai_nb.search.domains import Numbers
from kalavai_nb.search.optuna_parts import Param, make_pruner, make_sampler
from kalavai_nb.search.search import Search
from kalavai_nb.search.space import Space
from kalavai_nb.state import Trial, TrialState


class OptunaSearch:
    """Proposes what an Optuna sampler samples, or what another search of ours does, and prunes by an Optuna pruner.

    ``search`` is "tpe", "gp", "cmaes", a sampler, or a search of ours. A sampler's turn comes after the configs of
    ``start``; it stops after ``trials`` in all (None: never). ``metrics`` and ``modes`` are the objectives, ``path`` a
    file to keep the study in, where an older one is replaced. The study has a trial's index as a user attribute, a
    choice that Optuna cannot hold as a text, and not the names of the space that have one value only.
    Raises OptionError for "cmaes" in a space without numbers.
    """

    def __init__(
        self,
        space: Space,
        *,
        search: str | samplers.BaseSampler | Search,
        stop: str | pruners.BasePruner | None,
        seed: int,
        metrics: Sequence[str],
        modes: Sequence[str],
        start: Sequence[dict[str, Any]] = (),
        trials: int | None = None,
        name: str = "sweep",
        path: Path | None = None,
    ) -> None:
        if search == "cmaes" and not any(isinstance(domain, Numbers) for domain in space.varying.values()):
            raise OptionError("search='cmaes' moves numbers, and this space has none. Use search='tpe' or 'random'.")
        self._space, self._metrics, self._start, self._trials = space, metrics, start, trials
        self._sampler = search if isinstance(search, (str, samplers.BaseSampler)) else "random"
        self._own = None if isinstance(search, (str, samplers.BaseSampler)) else search
        self._params = {name: Param(domain) for name, domain in space.varying.items()}
        self._distributions: dict[str, BaseDistribution] = {n: param.distribution for n, param in self._params.items()}
        self._seed, self._pruner, self._path = seed, make_pruner(stop), path
        self._storage = InMemoryStorage()
        self._lock, self._begun, self._recalled = threading.Lock(), False, 0
        self._configs: dict[int, dict[str, Any]] = {}
        self._running: dict[int, optuna.Trial] = {}
        self._steps: dict[int, set[int]] = {}
        with _quiet(), _no_experimental_warnings():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=[StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for mode in modes],
                sampler=make_sampler(self._sampler, seed),
                # what looks at reports alone has nothing to learn from those of recalled trials but themselves
                pruner=pruners.NopPruner() if isinstance(self._pruner, pruners.PercentilePruner) else self._pruner,
            )
            self._study.set_metric_names(list(metrics))

    @property
    def study(self) -> optuna.Study:
        """Optuna's own study of this search, for its plots, tables and importances."""
        with self._lock:
            if not self._begun:
                self._begin()
        return self._study

    def ask(self, index: int) -> dict[str, Any] | None:
        """The config of trial ``index``, the same however often it is asked for; None: nothing more to try."""
        if index in self._configs:
            return dict(self._configs[index])
        if self._trials is not None and index >= self._trials:
            return None
        if self._own is not None:
            config = self._own.ask(index)
            if config is None:
                return None
        else:
            config = self._start[index] if index < len(self._start) else None
        trial = self._ask(self.study, index, config and self._encode(config))
        if config is None:
            config = {name: domain.value(0) for name, domain in self._space.domains.items() if domain.size == 1}
            config |= {name: self._params[name].decode(value) for name, value in trial.params.items()}
        self._configs[index] = {name: config[name] for name in self._space.domains}
        return dict(self._configs[index])

    def report(self, index: int, step: int, metrics: dict[str, float]) -> bool:
        """Hear what a running trial reports. Returns whether it should be pruned.

        A step counts once, so what a second attempt repeats is passed over. A number that is not finite prunes, unless
        it is the first: a metric may have no value yet when training begins, but one that loses its value has diverged.
        """
        trial, number = self._running.get(index), metrics.get(self._metrics[0])
        # Optuna has no reports for several objectives, and no steps before 0
        if trial is None or number is None or step < 0 or len(self._metrics) > 1 or step in self._steps[index]:
            return False
        first = not self._steps[index]
        self._steps[index].add(step)
        if not math.isfinite(number):
            return not first and not isinstance(self._pruner, pruners.NopPruner)
        with _quiet():
            trial.report(number, step)
            return trial.should_prune()

    def tell(self, trial: Trial) -> None:
        """Hear that a trial has ended. One that is STOPPED has not: it will run again under its index.

        Only finite numbers are told: a complete trial without is one that failed, to Optuna.
        """
        if trial.index not in self._running or not _has_ended(trial):
            return
        del self._steps[trial.index]
        theirs = self._running.pop(trial.index)
        numbers = [score(trial, metric) for metric in self._metrics]
        values = [number for number in numbers if number is not None and math.isfinite(number)]
        with _quiet():
            if trial.seconds is not None:
                theirs.set_user_attr("seconds", trial.seconds)
            if trial.state is TrialState.PRUNED:
                self._study.tell(theirs, state=optuna.trial.TrialState.PRUNED)
            elif trial.state is TrialState.COMPLETE and len(values) == len(numbers):
                self._study.tell(theirs, values)
            else:
                self._study.tell(theirs, state=optuna.trial.TrialState.FAIL)

    def recall(self, trial: Trial) -> None:
        """Hear of a trial that ended in an earlier session, before anything is asked. Outside the space it is left out.

        It is gone through as if it ran now: so samplers and pruners that keep notes on trials, as CMA-ES and ASHA do,
        have them again. The study's dates are those of now; how long it ran is its user attribute ``seconds``.
        """
        if not _has_ended(trial):
            return
        try:
            config = self._space.check(trial.config)
        except OptionError:
            return
        self._recalled += 1
        self._configs[trial.index] = config
        again = self._ask(self._study, trial.index, self._encode(config))
        if not isinstance(self._study.sampler, (samplers.TPESampler, samplers.GPSampler)):
            # asked for what it would have proposed, CMA-ES notes which of its generations the trial is in
            with _quiet():
                _ = again.relative_params
        for report in trial.reports:
            self.report(trial.index, report.step, report.metrics)
        self.tell(trial)

    def adopt(self, trial: Trial) -> None:
        """Hear of a trial of an earlier session that has not ended: it runs again. Outside the space it goes untold."""
        try:
            config = self._space.check(trial.config)
        except OptionError:
            self._configs[trial.index] = dict(trial.config)
            return
        self._configs[trial.index] = config
        self._ask(self.study, trial.index, self._encode(config))

    @property
    def size(self) -> int | None:
        """How many configs it proposes in all; None where there is no end."""
        return self._trials if self._own is None else self._own.size

    # inside

    def _begin(self) -> None:
        """After what is recalled, before what is asked."""
        with _quiet(), _no_experimental_warnings():
            if self._recalled:
                # with the seed itself, a sampler would sample again what is recalled
                seed = random.Random(f"{self._seed}/{self._recalled}").getrandbits(32)
                self._study.sampler = make_sampler(self._sampler, seed)
            self._study.pruner = self._pruner
            if self._path is not None:
                # only now, and as a whole: each report of a recalled trial would have waited for the disk
                self._study = _moved(self._study, self._storage, self._path)
        self._begun = True

    def _ask(self, study: optuna.Study, index: int, params: dict[str, Any] | None) -> optuna.Trial:
        with _quiet():
            if params is not None:
                study.enqueue_trial(params)
            trial = study.ask(self._distributions)
            trial.set_user_attr("index", index)
        self._running[index], self._steps[index] = trial, set()
        return trial

    def _encode(self, config: dict[str, Any]) -> dict[str, Any]:
        return {name: param.encode(config[name]) for name, param in self._params.items()}


def _moved(study: optuna.Study, storage: BaseStorage, path: Path) -> optuna.Study:
    """The same study, in a file that optuna-dashboard and `optuna.load_study` read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, path.with_name(f"{path.name}.lock")):
        old.unlink(missing_ok=True)
    kept = JournalStorage(JournalFileBackend(str(path)))
    name = study.study_name
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=kept)
    return optuna.load_study(study_name=name, storage=kept, sampler=study.sampler, pruner=study.pruner)


def _has_ended(trial: Trial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.FAILED, TrialState.PRUNED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says only what went wrong; its verbosity afterwards is the user's own again."""
    logger = logging.getLogger("optuna")
    before, now = logger.level, max(logger.level, logging.ERROR)
    logger.setLevel(now)
    try:
        yield
    finally:
        if logger.level == now:
            logger.setLevel(before)


@contextlib.contextmanager
def _no_experimental_warnings() -> Iterator[None]:
    """Only where something is made: the filters belong to all threads, so that changing them often would be heard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
