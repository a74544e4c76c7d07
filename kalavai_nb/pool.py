"""The pool, as a notebook or a script holds it."""

from __future__ import annotations

import atexit
import inspect
import os
import time
from collections.abc import Callable
from typing import Any

from kalavai_nb.announce import count_devices, owner_label, say
from kalavai_nb.blobs import interactive_namespace
from kalavai_nb.cell import CellRun
from kalavai_nb.deploy import EmbeddedPool
from kalavai_nb.engine import Engine, import_dask
from kalavai_nb.errors import KalavaiError, NotEnoughDevices, PoolClosed
from kalavai_nb.options import RunOptions
from kalavai_nb.preview import preview
from kalavai_nb.security import Invite, parse_seconds
from kalavai_nb.session import CALL_VALUE, Session
from kalavai_nb.state import Device, Snapshot
from kalavai_nb.table import snapshot_html, snapshot_text
from kalavai_nb.trials.methods import SweepMethods
from kalavai_nb.trials.shelf import sweeps

JOIN_SECONDS = 30.0
_current: Pool | None = None


class Pool(SweepMethods):
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
        self.check()
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
        self.check()
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
        self.check()
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

    def check(self) -> None:
        """Raise PoolClosed where nothing can be asked of this pool any more."""
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
