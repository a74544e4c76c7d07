"""What a pool can do with many trials: ``pool.map``, ``pool.sweep`` and ``pool.sweeps``."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Never

from kalavai_nb.engine import Engine
from kalavai_nb.errors import OptionError
from kalavai_nb.options import nearest
from kalavai_nb.state import Value
from kalavai_nb.trials.configs import read_configs
from kalavai_nb.trials.launch import Proposal, launch
from kalavai_nb.trials.options import MapOptions, read_map_options
from kalavai_nb.trials.pool import Displays
from kalavai_nb.trials.shelf import Shelf, sweeps
from kalavai_nb.trials.sweep import Sweep

DEFAULT_TRIALS = 50


class SweepMethods:
    """The part of `kalavai_nb.Pool` that is about sweeps."""

    @property
    def engine(self) -> Engine:
        """The connection to the pool."""
        raise NotImplementedError

    def check(self, *, use: bool = False) -> None:
        """Raise PoolClosed where nothing can be asked of this pool any more. Before ``use``, say what will break."""
        raise NotImplementedError

    def map(
        self,
        fn: Callable[..., Value],
        configs: Iterable[Any],
        *,
        gpus: float = 1,
        name: str | None = None,
        metric: str | None = None,
        mode: str = "min",
        retries: int = 0,
        timeout: str | float | None = None,
        where: str | Mapping[str, Any] | None = None,
        isolate: bool | str = "auto",
        max_parallel: int | None = None,
        repeatable: bool = False,
        resume: bool = True,
        seed: int | None = None,
        show: bool = True,
        **unknown: Never,
    ) -> Sweep[Value]:
        """Call ``fn`` on each config, one trial per device, each in a fresh process; returns at once.

        Every outcome is written to ``.kalavai/`` beside the notebook before it is shown, so that no end of a worker, a
        pool or this notebook loses a finished trial.

        Parameters
        ----------
        fn : callable
            ``fn(config)``, or ``fn(config, trial)`` to report, to save checkpoints and to be stopped early: see
            `LiveTrial`. Functions of the notebook and of modules beside it go along as they are now.
        configs : list
            The arguments, in the order in which the results are kept.
        gpus : float
            Devices for each trial; a fraction is a share of one, so that 0.5 runs two trials on a device.
        name : str, optional
            Names the sweep. Running it again under the same name, also after a restart of the kernel, is its resume:
            what is done is not run again, what failed is, new configs are added.
        metric : str, optional
            Which entry of the values, where they are dicts, ``best`` goes by; without it, the value itself.
        mode : {"min", "max"}
            Whether the least or the greatest is best.
        retries : int
            How often a trial that failed is tried again, behind all others. (One whose worker was lost runs again in
            any case, before those that have not begun, and one that ran out of GPU memory on more of it.)
        timeout : str or float, optional
            The longest a trial may run, such as ``"10m"`` or seconds.
        where : str or dict, optional
            Which devices will do: ``{"type": "A100", "vram": 24, "host": "box*"}``, as in ``%%pool``.
        isolate : bool or "auto"
            True: a fresh process for each trial. False: one process per device. "auto": fresh ones, but trials that
            take less than a second share one.
        max_parallel : int, optional
            The most trials at a time.
        repeatable : bool
            Whether it does no harm to run a trial twice: then the last ones, if they take far longer than most, are
            started a second time on devices that have become free, and the first to end counts.
        resume : bool
            False: forget what was done under this ``name``.
        seed : int, optional
            Random numbers of Python, NumPy and torch are seeded with it and the trial's index; without, by chance.
        show : bool
            Show live progress in the notebook.

        Returns
        -------
        Sweep
            List-like; asking it for a value waits for that value.

        Raises
        ------
        OptionError
            An option or the configs cannot be meant.
        SendError
            ``fn`` or a config cannot be pickled.
        NotEnoughDevices
            No device of the pool is like what a trial needs.
        """
        _check_names("map", unknown, self.map)
        options = read_map_options(
            gpus=gpus,
            metric=metric,
            mode=mode,
            timeout=timeout,
            where=where,
            name=name,
            retries=retries,
            isolate=isolate,
            max_parallel=max_parallel,
            repeatable=repeatable,
            resume=resume,
            seed=seed,
            show=show,
        )
        return self._begin(fn, options, configs=read_configs(configs))

    def sweep(
        self,
        fn: Callable[..., Value],
        space: Mapping[str, Any],
        *,
        metric: str | Sequence[str],
        mode: str | Sequence[str] = "min",
        trials: int | None = None,
        search: Any = "tpe",
        stop: Any = None,
        start: Sequence[Mapping[str, Any]] = (),
        seed: int | None = 0,
        **map_options: Any,
    ) -> Sweep[Value | None]:
        """Search a space for the config with the best metric; trials run as in `map`.

        Parameters
        ----------
        fn : callable
            As in `map`. It returns the metric, or a dict with it; what it reported last counts where it does neither.
        space : dict
            ``{"lr": kn.loguniform(1e-5, 1e-1), "layers": [2, 4, 8], "width": range(16, 257), "epochs": 10}``: a list is
            values to choose from, one value is a constant; Optuna's distributions will do, too.
        metric, mode : str or list of str
            What is to be least ("min") or greatest ("max"); several of them for a Pareto front.
        trials : int, optional
            How many to run: 50 where nothing is said, all combinations of a grid.
        search : {"tpe", "gp", "cmaes", "random", "grid"} or optuna.samplers.BaseSampler
            Who proposes configs. All but grid and random need Optuna (``pip install 'kalavai-nb[search]'``).
        stop : {"asha", "median", "hyperband"} or optuna.pruners.BasePruner, optional
            Ends trials early that look bad, by what they say with ``trial.report(step, loss=…)``. Needs Optuna.
        start : list of dict
            Configs to try first.
        seed : int, optional
            The same seed proposes the same configs, given the same results in the same order (grid and random: in any
            order), and seeds each trial's random numbers. None: by chance.
        **map_options
            ``gpus``, ``name``, ``retries``, ``timeout``, … as in `map`.

        Returns
        -------
        Sweep
            ``best``, ``best_trials``, ``study`` (Optuna's), and all that `map` gives.

        Raises
        ------
        OptionError, SendError, NotEnoughDevices
            As in `map`.
        MissingExtra
            The search needs a package that is not installed.
        """
        defaults = {"gpus": 1, "timeout": None, "where": None}
        _check_names("sweep", map_options, self.map, self.sweep)
        options = read_map_options(**{**defaults, **map_options}, metric=metric, mode=mode, seed=seed)
        planned = DEFAULT_TRIALS if trials is None and search != "grid" else trials
        return self._begin(fn, options, proposal=Proposal(space, search, stop, start, planned))

    @property
    def sweeps(self) -> Shelf:
        """All sweeps by name: those of this notebook, and those that the journal beside it has."""
        return sweeps

    def _begin(
        self,
        fn: Callable[..., Any],
        options: MapOptions,
        *,
        configs: list[Any] | None = None,
        proposal: Proposal | None = None,
    ) -> Sweep:
        self.check(use=True)
        sweeps.stop_if_running(options.name)
        try:
            sweep = launch(self.engine, sweeps.journal, fn, options, configs=configs, proposal=proposal)
        except (OSError, sqlite3.Error) as error:
            journal = sweeps.substitute(error)
            sweep = launch(self.engine, journal, fn, options, configs=configs, proposal=proposal)
        sweeps.add(sweep)
        sweep.find_panel = lambda: self._panel_of(sweep)
        return sweep

    def _panel_of(self, sweep: Sweep) -> Displays | None:
        """What shows this sweep live, where there is something."""
        raise NotImplementedError


def _check_names(method: str, given: Iterable[str], own: Callable[..., Any], *others: Callable[..., Any]) -> None:
    """Raise OptionError for a name that is no option of ``own``; it may have been meant for one of the ``others``."""
    options = _options(own)
    if unknown := set(given) - options:
        name, every = min(unknown), options.union(*map(_options, others))
        where = " and ".join(dict.fromkeys(["help(pool.map)", f"help(pool.{method})"]))
        are = "list" if others else "lists"
        raise OptionError(f"pool.{method} has no option {name!r}.{nearest(name, sorted(every))} {where} {are} them.")


def _options(method: Callable[..., Any]) -> set[str]:
    found = inspect.signature(method).parameters.values()
    return {each.name for each in found if each.kind is each.KEYWORD_ONLY}
