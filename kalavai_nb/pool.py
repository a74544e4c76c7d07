"""The pool, as a notebook or a script holds it."""

from __future__ import annotations

import atexit
import inspect
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kalavai_nb.announce import count_devices, owner_label, say
from kalavai_nb.blobs import interactive_namespace
from kalavai_nb.cell import CellRun
from kalavai_nb.deploy import EmbeddedPool
from kalavai_nb.engine import Engine, import_dask
from kalavai_nb.errors import KalavaiError, NotEnoughDevices, OptionError, PoolClosed
from kalavai_nb.options import RunOptions
from kalavai_nb.preview import preview
from kalavai_nb.security import Invite, parse_seconds
from kalavai_nb.session import CALL_VALUE, Session
from kalavai_nb.state import Device, Snapshot
from kalavai_nb.table import snapshot_html, snapshot_text
from kalavai_nb.trials.configs import read_configs
from kalavai_nb.trials.launch import Proposal, launch
from kalavai_nb.trials.options import MapOptions, read_map_options
from kalavai_nb.trials.shelf import Shelf, sweeps
from kalavai_nb.trials.sweep import Sweep

JOIN_SECONDS = 30.0
DEFAULT_TRIALS = 50
_current: Pool | None = None


class Pool:
    """The devices of several machines, or of this one, as one pool.

    Parameters
    ----------
    invite : str, optional
        ``kalavai://…`` from somebody's ``pool.invite()``: connect to that pool. Without it, open an embedded pool: a
        device for each GPU of this machine, or CPU stand-ins where it has none, which ends with this process.
    devices : int, optional
        How many local devices an embedded pool has; default all GPUs, or 4 stand-ins.
    idle_seconds : float
        An embedded pool takes devices of an idle notebook back after so long, if another one waits for them.
    quiet : bool
        Say nothing about what was opened.

    Raises
    ------
    InviteError
        The invite is cut off, wrong or expired.
    PoolClosed
        The head does not answer.
    """

    def __init__(
        self, invite: str | None = None, *, devices: int | None = None, idle_seconds: float = 60.0, quiet: bool = False
    ) -> None:
        global _current
        announce: Callable[[str], None] = (lambda _: None) if quiet else say
        self._embedded: EmbeddedPool | None = None
        if invite is None:
            self._open(devices, idle_seconds, announce)
        else:
            ticket = Invite.decode(invite)
            self._engine = Engine(ticket.address, ticket.identity, owner_label())
        self.defaults = RunOptions()
        self._session = Session(self._engine, say)
        self._closed = False
        self._pid = os.getpid()
        _current = self
        atexit.register(self.close)
        if invite is not None:
            announce(f"connected to the pool of {self._engine.pool}: {count_devices(self.devices)}")

    # what there is

    @property
    def devices(self) -> list[Device]:
        """The devices of the pool, ordered by host and index."""
        return list(self.snapshot().devices)

    def snapshot(self) -> Snapshot:
        """Devices, leases and queue at this moment; ``to_dict()`` gives plain JSON."""
        self._check()
        return self._engine.snapshot()

    def invite(self, role: str = "user", *, expires: str | float = "2h") -> str:
        """A text with which another notebook of this machine connects: ``kn.Pool(text)``.

        Whoever has it can run code on every machine of the pool until it expires. Raises KalavaiError where this
        notebook did not open the pool, and ValueError for another role or an ``expires`` that is no time.
        """
        if role != "user":
            raise ValueError(f"an embedded pool invites users only, got role={role!r}")
        if not self._embedded:
            raise KalavaiError("only the notebook that opened the pool can invite to it")
        seconds = parse_seconds(expires)
        identity = self._embedded.identity(f"user:{owner_label()}", seconds)
        return Invite(self._engine.pool, self._address, role, time.time() + seconds, identity).encode()

    # using it

    def run(self, source: str | Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What ``%%pool`` does, for plain Python.

        Parameters
        ----------
        source : str or callable
            Text runs as a cell would. A callable is called in every rank with ``args``; its values come back.
        **options
            Those of ``%%pool`` (see `RunOptions`), as text or as Python values: ``gpus=2, out=["loss"]``;
            ``async_=True`` returns a handle at once.

        Returns
        -------
        list, dict, CellRun or None
            A callable's values by rank; for text, {name: values by rank} of ``out=``; a handle with ``async_``; None
            after a ``dry_run``. Values over 100 MB are `RemoteValue`: ``get()`` brings them home.
        """
        chosen = self.defaults.updated(options)
        run = self.start_cell(source, chosen, args=args)
        return run.result() if run and chosen.background is None else run

    def start_cell(
        self, source: str | Callable[..., Any], options: RunOptions, *, args: tuple[Any, ...] = (), number: int = 0
    ) -> CellRun | None:
        """Run a cell to its end (in the background: begin it); ``result()`` of what is returned raises its error.

        None after a ``dry_run``, which only says what would happen.
        """
        self._check()
        namespace = interactive_namespace()
        extra: dict[str, Any] = {}
        if callable(source):
            extra = {"_call": source, "_call_args": args}
            text = f"{CALL_VALUE} = _call(*_call_args)"
            options = options.updated({"out": (*options.out, CALL_VALUE)})
        else:
            text = inspect.cleandoc(source) if source.startswith((" ", "\n")) else source
        if options.dry_run:
            say(preview(self._engine, self._session, text, options, namespace))
            return None
        return self._session.run(text, options, namespace, number=number, extra=extra)

    def map(
        self,
        fn: Callable[..., Any],
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
    ) -> Sweep:
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
            How often a trial that failed is tried again, behind all others. (One whose worker was lost is tried once
            more in any case, and one that ran out of GPU memory again on more of it.)
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
        fn: Callable[..., Any],
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
    ) -> Sweep:
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
        if unknown := set(map_options) - set(inspect.signature(self.map).parameters):
            raise OptionError(
                f"pool.sweep has no option {min(unknown)!r}; help(pool.map) and help(pool.sweep) list them."
            )
        options = read_map_options(**{**defaults, **map_options}, metric=metric, mode=mode, seed=seed)
        planned = DEFAULT_TRIALS if trials is None and search != "grid" else trials
        return self._begin(fn, options, proposal=Proposal(space, search, stop, start, planned))

    @property
    def sweeps(self) -> Shelf:
        """All sweeps by name: those of this notebook, and those that the journal beside it has."""
        return sweeps

    @property
    def engine(self) -> Engine:
        """The connection to the pool, for what is built on it."""
        return self._engine

    @property
    def owner(self) -> str:
        """This notebook's name in leases and queue."""
        return self._engine.owner

    @property
    def runs(self) -> list[CellRun]:
        """The last cells, oldest first."""
        return list(self._session.runs)

    def restart(self) -> str:
        """End all ranks of this notebook; returns a sentence that says which names went with them."""
        self._check()
        for run in self._session.running():
            run.cancel()
        return self._session.roster.restart()

    def close(self) -> None:
        """Leave the pool; an embedded one ends with all that runs on it. Idempotent."""
        global _current
        # a forked child of the notebook has a copy of this object, but not the pool
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        if _current is self:
            _current = None
        for sweep in sweeps.live():
            sweep.abandon(self._engine)
        self._engine.close()
        if self._embedded:
            self._embedded.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a pool lives in the notebook that opened it and cannot be sent to a rank")

    def __repr__(self) -> str:
        return "<Pool: closed>" if self._is_gone else snapshot_text(self.snapshot(), self._engine.owner)

    def _repr_html_(self) -> str:
        return "Pool: closed" if self._is_gone else snapshot_html(self.snapshot(), self._engine.owner)

    # inside

    @property
    def _is_gone(self) -> bool:
        return self._closed or self._engine.closed

    def _begin(
        self,
        fn: Callable[..., Any],
        options: MapOptions,
        *,
        configs: list[Any] | None = None,
        proposal: Proposal | None = None,
    ) -> Sweep:
        self._check()
        sweeps.stop_if_running(options.name)
        sweep = launch(self._engine, sweeps.journal, fn, options, configs=configs, proposal=proposal)
        sweeps.add(sweep)
        return sweep

    def _open(self, devices: int | None, idle_seconds: float, announce: Callable[[str], None]) -> None:
        from kalavai_nb.worker.devices import local_devices

        local = local_devices(devices)
        label = owner_label()
        self._embedded = EmbeddedPool(label, local, idle_seconds)
        try:
            import_dask()  # while the pool starts
            self._address = self._embedded.wait()
            self._engine = Engine(self._address, self._embedded.identity(f"user:{label}"), label)
            self._wait_for(len(local))
        except BaseException:
            self._embedded.close()
            raise
        no_gpu = " (this machine has no GPU)" if local[0].kind == "cpu" else ""
        announce(f"opened an embedded pool: {count_devices(local)}{no_gpu}")

    def _wait_for(self, count: int) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        while (there := len(self._engine.snapshot().devices)) < count:
            if time.monotonic() > deadline:
                raise NotEnoughDevices(f"{there} of {count} devices joined the pool within {JOIN_SECONDS:.0f} s")
            time.sleep(0.02)

    def _check(self) -> None:
        if self._closed:
            raise PoolClosed("this pool is closed; open a new one with kn.Pool().")
        self._engine.check()


def current_pool() -> Pool:
    """The pool that was opened last; an embedded one is opened where there is none."""
    return _current if _current is not None else Pool()


def has_pool() -> bool:
    """Whether a pool is open."""
    return _current is not None


def check_options(given: dict[str, str]) -> None:
    """Raise OptionError for options that cannot be meant, before anything is opened or touched."""
    RunOptions().updated(given)
