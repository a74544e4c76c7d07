"""The pool, as a notebook or a script holds it."""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from kalavai_nb.announce import owner_label, say
from kalavai_nb.blobs import interactive_namespace
from kalavai_nb.cell import CellRun
from kalavai_nb.doctor import Checkup, Doctor
from kalavai_nb.engine import Engine
from kalavai_nb.errors import PoolClosed
from kalavai_nb.fields import made
from kalavai_nb.invites import ROLES
from kalavai_nb.lm.methods import ModelMethods
from kalavai_nb.opening import opened
from kalavai_nb.options import RunOptions
from kalavai_nb.orders import carry_out
from kalavai_nb.panel.panel import Panel
from kalavai_nb.panels import Panels
from kalavai_nb.preview import preview
from kalavai_nb.screen import publish
from kalavai_nb.security import parse_seconds
from kalavai_nb.session import CALL_VALUE, Session
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device, machine_id
from kalavai_nb.table import snapshot_bundle
from kalavai_nb.trials.methods import SweepMethods
from kalavai_nb.trials.shelf import sweeps
from kalavai_nb.trials.sweep import Sweep
from kalavai_nb.watch import Watch

CLOSED_HTML = "Pool: closed; <code>kn.Pool()</code> opens a new one"
_current: Pool | None = None


class Pool(SweepMethods, ModelMethods):
    """The devices of several machines, or of this one, as one pool.

    Parameters
    ----------
    invite : str, optional
        ``kalavai://…`` from ``kalavai-nb invite`` or ``pool.invite()``: connect to that pool; the next time, its name
        will do. Without it, open an embedded pool: a device for each GPU of this machine, or CPU stand-ins, which ends
        with this process.
    devices : int, optional
        How many local devices an embedded pool has; default all GPUs, or 4 stand-ins.
    idle_seconds : float
        An embedded pool takes devices of an idle notebook back after so long, if another one waits for them.
    quiet : bool
        Say nothing about what was opened.
    cluster : object, optional
        A Dask cluster that you have already: its workers are the devices, and it stays when the pool is closed.
        ``kn.Pool("tls://host:port", security=…)`` takes the address of its scheduler instead.
    security : object, optional
        What the scheduler of that cluster wants of those who connect: a ``distributed.Security``.

    Raises
    ------
    InviteError
        The invite is cut off, wrong or expired.
    OptionError
        Two pools were asked for at once, or ``devices`` is no number of devices.
    NotEnoughDevices
        This machine does not have so many devices.
    PoolClosed
        The head does not answer.
    """

    def __init__(
        self,
        invite: str | None = None,
        *,
        devices: int | None = None,
        idle_seconds: float = 60.0,
        quiet: bool = False,
        cluster: Any = None,
        security: Any = None,
    ) -> None:
        global _current
        self._opened = opened(invite, cluster, security, devices, idle_seconds)
        self._engine = self._opened.engine
        self.defaults = RunOptions()
        self._session = Session(self._engine, say)
        # an embedded pool is of this very environment
        self._doctor = Doctor(self._engine, say, [machine_id()] if invite is None and cluster is None else [])
        self._closed = False
        self._pid = os.getpid()
        can_invite = self._opened.can_invite
        self._watch = Watch(self._engine, owner_label(), self._look, partial(carry_out, self), can_invite=can_invite)
        self._panels = Panels(self._engine, self._watch)
        if _current is not None and _current._is_gone:
            # its head is lost, and nobody else will take its files away
            _current.close()
        _current = self
        atexit.register(self.close)
        for remark in [] if quiet else self._opened.remarks:
            say(remark)
        if not quiet:
            self.check(use=True)

    # what there is

    @property
    def devices(self) -> list[Device]:
        """The devices of the pool, ordered by host and index."""
        return list(self.snapshot().devices)

    def snapshot(self) -> Snapshot:
        """The whole pool at this moment: devices, readings, who holds what, what runs; ``to_dict()`` is plain JSON.

        Raises PoolClosed where the pool is gone.
        """
        self.check()
        return self._engine.snapshot()

    def panel(self, *, widget: bool = True) -> Panel:
        """The pool live in the notebook, also while a cell runs, with buttons that stop and release what is yours.

        Displayed, it shows each second what every device does; a saved notebook shows the last state. ``pool`` on the
        last line of a cell is the same, and all of them are one. With ``widget=False`` it is plain HTML, for front ends
        without widgets.
        """
        self.check()
        return self._panels.whole(widget)

    def invite(self, role: str = "user", *, expires: str | float = "2h", uses: int = 1, stay: str | float = 0.0) -> str:
        """A text by which others come into the pool, until it ``expires`` or has been used so often.

        Parameters
        ----------
        role : {"user", "worker"}
            A user connects a notebook, by ``kn.Pool(text)``; whoever does can run code on every machine of the pool. A
            worker lends a machine, by ``kalavai-nb join text``. An embedded pool has users on its own machine only.
        expires, stay : str or float
            How long the invite can be used, and how long those who came by it may stay: ``"2h"``, ``"7d"`` or seconds;
            ``stay=0`` is until they are revoked.
        uses : int
            How many may come by it.

        Raises
        ------
        KalavaiError
            In this pool only those who look after it invite.
        ValueError
            Another role, or what is no time.
        """
        if role not in ROLES:
            raise ValueError(f"wanted role={' or '.join(map(repr, ROLES))}, got {role!r}")
        self.check()
        return self._opened.invite(role, parse_seconds(expires), uses, parse_seconds(stay))

    def doctor(self) -> Checkup:
        """What differs on the machines of the pool from this notebook, or is amiss there, with what to do about it.

        Versions, ways that are slow or lead through the gate, clocks, certificates, disks. Printed it is a table.
        """
        self.check()
        return self._doctor.checkup()

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

        Raises
        ------
        OptionError, SendError, NotEnoughDevices
            What was asked for cannot be meant, sent or had. What the code raises in a rank is raised as it is.
        RankDied, CellTimeout, PoolClosed
            A rank is gone, ``timeout`` is over, the pool is gone.
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
        self.check(use=True)
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
    def session(self) -> Session:
        """The cells of this notebook, and their ranks."""
        return self._session

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
        self._watch.close()
        self._panels.close()
        for sweep in sweeps.live():
            sweep.abandon(self._engine)
        self._engine.close()
        self._opened.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a pool lives in the notebook that opened it and cannot be sent to a rank")

    def __repr__(self) -> str:
        return self._shown()["text/plain"]

    def _repr_html_(self) -> str:
        return self._shown()["text/html"]

    def _ipython_display_(self) -> None:
        if self._is_gone:
            publish(self._shown(), {})
        else:
            self.panel().show()

    # inside

    @property
    def _is_gone(self) -> bool:
        return self._closed or self._engine.closed

    def _look(self) -> dict[str, list[dict[str, Any]]]:
        """What this notebook runs here, for all to see."""
        engine = self._engine
        seen: dict[str, list[Any]] = {
            "cells": [run.look(engine.owner) for run in self._session.running()],
            "sweeps": [sweep.look(engine) for sweep in sweeps.live()],
            "models": [model.look(engine.owner) for model in self.models],
        }
        # made anew: a text of the user's own, such as that of an error, may be one that cannot be sent
        return {
            kind: [dict(vars(made(type(each), vars(each)))) for each in nouns if each] for kind, nouns in seen.items()
        }

    def _shown(self) -> dict[str, str]:
        """What is to be seen where nothing lives: the pool now, or the last there was of it."""
        if self._closed:
            return {"text/plain": "<Pool: closed; kn.Pool() opens a new one>", "text/html": CLOSED_HTML}
        self._watch.look()
        return snapshot_bundle(self._watch.snapshot, self._engine.owner, self._watch.reason)

    def _panel_of(self, sweep: Sweep) -> Panel | None:
        return None if self._is_gone else self._panels.of_sweep(sweep)

    def check(self, *, use: bool = False) -> None:
        """Raise PoolClosed where nothing can be asked of this pool any more. Before ``use``, say what will break."""
        if self._closed:
            raise PoolClosed("this pool is closed; open a new one with kn.Pool().")
        self._engine.check()
        if use:
            self._doctor.before_use(self._watch.snapshot.devices)


def current_pool() -> Pool:
    """The pool that was opened last; an embedded one is opened where there is none."""
    return _current if _current is not None else Pool()


def has_pool() -> bool:
    """Whether a pool is open."""
    return _current is not None
