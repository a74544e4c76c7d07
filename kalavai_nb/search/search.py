"""Who proposes the configs of a sweep: a grid, chance, or Optuna, behind one face."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kalavai_nb.errors import MissingExtra, OptionError
from kalavai_nb.scores import check_mode
from kalavai_nb.search.space import Space, did_you_mean
from kalavai_nb.state import Trial

SEARCHES = ("grid", "random", "tpe", "gp", "cmaes")
STOPS = ("asha", "median", "hyperband")
# what a search imports beside Optuna, which does not bring it along
_IMPORTS = {"gp": ("scipy", "torch"), "cmaes": ("cmaes",)}


class Search(Protocol):
    """Proposes configs and hears how they went. Used by the sweep's own thread alone."""

    def ask(self, index: int) -> dict[str, Any] | None:
        """The config of trial ``index``, the same however often it is asked for; None: nothing more to try."""

    def report(self, index: int, step: int, metrics: dict[str, float]) -> bool:
        """Hear what a running trial reports. Returns whether it should be pruned."""

    def tell(self, trial: Trial) -> None:
        """Hear that a trial has ended. One that is STOPPED has not: it will run again under its index."""

    def recall(self, trial: Trial) -> None:
        """Hear of a trial that ended in an earlier session, before anything is asked."""

    def adopt(self, trial: Trial) -> None:
        """Hear of a trial of an earlier session that has not ended, after all that have: it runs again."""

    @property
    def size(self) -> int | None:
        """How many configs it proposes in all; None where there is no end."""


class _ByIndex:
    """A search whose configs depend on the index alone, so that it has nothing to learn or to remember."""

    def __init__(self, start: Sequence[dict[str, Any]], trials: int | None) -> None:
        self._start, self._trials = start, trials

    def ask(self, index: int) -> dict[str, Any] | None:
        if self._trials is not None and index >= self._trials:
            return None
        return dict(self._start[index]) if index < len(self._start) else self._propose(index)

    def report(self, index: int, step: int, metrics: dict[str, float]) -> bool:
        return False

    def tell(self, trial: Trial) -> None:
        pass

    def recall(self, trial: Trial) -> None:
        pass

    def adopt(self, trial: Trial) -> None:
        pass

    @property
    def size(self) -> int | None:
        return self._trials

    def _propose(self, index: int) -> dict[str, Any] | None:
        raise NotImplementedError


class GridSearch(_ByIndex):
    """``start``, then all other combinations of the space, the last name varying fastest; ``trials`` at most.

    Raises OptionError where the space has no end of combinations.
    """

    def __init__(self, space: Space, *, start: Sequence[dict[str, Any]] = (), trials: int | None = None) -> None:
        super().__init__(start, trials)
        self._space, self._size = space, space.grid_size
        self._taken = {space.grid_position(config) for config in start}
        self._proposed: dict[int, int] = {}
        self._next = 0

    @property
    def size(self) -> int:
        there = self._size - len(self._taken) + len(self._start)
        return there if self._trials is None else min(self._trials, there)

    def recall(self, trial: Trial) -> None:
        # the grid may have grown or shrunk since: what was tried is known by its config, not by its number
        with contextlib.suppress(OptionError, LookupError):
            self._taken.add(self._space.grid_position(self._space.check(trial.config)))

    def adopt(self, trial: Trial) -> None:
        self.recall(trial)

    def _propose(self, index: int) -> dict[str, Any] | None:
        if index not in self._proposed:
            while self._next in self._taken:
                self._next += 1
            if self._next >= self._size:
                return None
            self._proposed[index] = self._next
            self._next += 1
        return self._space.grid_config(self._proposed[index])


class RandomSearch(_ByIndex):
    """``start``, then configs drawn from the space; ``trials`` at most. Seed and index alone say which."""

    def __init__(
        self, space: Space, *, seed: int, start: Sequence[dict[str, Any]] = (), trials: int | None = None
    ) -> None:
        super().__init__(start, trials)
        self._space, self._seed = space, seed

    def _propose(self, index: int) -> dict[str, Any] | None:
        # seeded by text, which Python hashes alike in every process
        return self._space.sample(random.Random(f"{self._seed}/{index}"))


def make_search(
    space: Mapping[str, Any] | Space,
    *,
    search: Any = "tpe",
    stop: Any = None,
    seed: int | None = 0,
    metrics: Sequence[str] = (),
    modes: Sequence[str] = (),
    start: Sequence[Mapping[str, Any]] = (),
    trials: int | None = None,
    name: str = "sweep",
    path: Path | None = None,
) -> Search:
    """The search that these options mean; what cannot be meant is refused before anything runs.

    Parameters
    ----------
    space : Mapping or Space
        As in `Space`.
    search : {"grid", "random", "tpe", "gp", "cmaes"} or optuna.samplers.BaseSampler
        Grid and random need no Optuna, unless ``stop`` is given.
    stop : {"asha", "median", "hyperband"}, optuna.pruners.BasePruner or None
        What prunes trials on what they report; for one metric only.
    seed : int or None
        The same seed gives the same configs; None takes one by chance.
    metrics, modes : sequence of str
        What to make best, and for each "min" or "max". Grid and random need none, unless ``stop`` is given.
    start : sequence of dict
        Configs to try first.
    trials : int or None
        The most that is tried, ``start`` included.
    name, path : str, Path or None
        What Optuna's study is called, and the file that keeps it for Optuna's dashboard; without, it is in memory only.

    Raises
    ------
    OptionError
        For options that cannot be meant, with the nearest name.
    MissingExtra
        Where a package that this search needs is not installed.
    """
    space = space if isinstance(space, Space) else Space(space)
    _check_name("search", search, SEARCHES, "BaseSampler", "optuna.samplers.TPESampler()")
    if stop is not None:
        _check_name("stop", stop, STOPS, "BasePruner", "optuna.pruners.MedianPruner()")
    configs = _check_start(space, start)
    _check_numbers(seed, trials, len(configs))
    seed = secrets.randbits(32) if seed is None else seed
    own: Search | None = None
    if search == "grid":
        own = GridSearch(space, start=configs, trials=trials)
    elif search == "random":
        own = RandomSearch(space, seed=seed, start=configs, trials=trials)
    if own is not None and stop is None:
        return own
    _check_metrics(search, stop, metrics, modes)
    _check_imports(search, stop)
    from kalavai_nb.search.optuna_search import OptunaSearch

    return OptunaSearch(
        space,
        search=search if own is None else own,
        stop=stop,
        seed=seed,
        metrics=metrics,
        modes=modes,
        start=configs,
        trials=trials,
        name=name,
        path=path,
    )


def _check_name(option: str, given: Any, names: Sequence[str], base: str, example: str) -> None:
    """Whether this is one of the names, or an object of Optuna's of this base class."""
    if isinstance(given, str):
        if given not in names:
            raise OptionError(
                f"{option}={given!r} is not known.{did_you_mean(given, names)} The names are {', '.join(names)}."
            )
        return
    optuna = sys.modules.get("optuna")
    home = optuna and (optuna.samplers if option == "search" else optuna.pruners)
    if home and isinstance(given, type) and issubclass(given, getattr(home, base)):
        raise OptionError(f"{option}={given.__name__} is a class: wanted an object. Write {given.__name__}().")
    if not home or not isinstance(given, getattr(home, base)):
        raise OptionError(
            f"{option}={given!r} cannot be meant: wanted one of {', '.join(names)}, or an object such as {example}."
        )


def _check_start(space: Space, start: Any) -> list[dict[str, Any]]:
    if isinstance(start, (str, Mapping)) or not isinstance(start, Sequence):
        raise OptionError(f"start={start!r} cannot be meant: wanted a list of configs. Write start=[{{…}}].")
    return [space.check(config, f"start[{position}]") for position, config in enumerate(start)]


def _check_numbers(seed: Any, trials: Any, started: int) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise OptionError(f"seed={seed!r} cannot be meant: wanted an integer, or None for one by chance.")
    if trials is None:
        return
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise OptionError(f"trials={trials!r} cannot be meant: wanted how many configs to try, 1 or more.")
    if trials < started:
        raise OptionError(f"start= has {started} configs, but trials={trials}: raise trials, or start with fewer.")


def _check_metrics(search: Any, stop: Any, metrics: Sequence[str], modes: Sequence[str]) -> None:
    if not metrics:
        what = f"stop={stop!r}" if stop is not None else f"search={search!r}"
        raise OptionError(f"{what} needs a number to go by: give metric=, such as metric='loss'.")
    for mode in modes:
        check_mode(mode)
    if len(modes) != len(metrics):
        raise OptionError(f"{len(metrics)} metrics have {len(modes)} modes: give each metric its own 'min' or 'max'.")
    if len(metrics) == 1:
        return
    if stop is not None:
        raise OptionError(
            f"stop={stop!r} goes by one metric, and there are {len(metrics)}: {', '.join(metrics)}. "
            "Leave stop= out, or give one metric."
        )
    if search == "cmaes" or type(search).__name__ == "CmaEsSampler":
        raise OptionError(
            f"search='cmaes' goes by one metric, and there are {len(metrics)}: {', '.join(metrics)}. Use 'tpe' or 'gp'."
        )


def _check_imports(search: Any, stop: Any) -> None:
    beside = _IMPORTS.get(search, ()) if isinstance(search, str) else ()
    what = f"search={search!r}" if search not in ("grid", "random") else f"stop={stop!r}"
    for package in ("optuna", *beside):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"{what} needs {package}, which is not installed. Run: pip install 'kalavai-nb[search]'")
