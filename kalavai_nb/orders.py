"""What the buttons of panel and sidebar do: stop a sweep or a cell, close a model, release a device, make an invite."""

from __future__ import annotations

from typing import Protocol

from kalavai_nb.engine import Engine
from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.lm.sharded_lm import ShardedLM
from kalavai_nb.registry.asking import VERBS
from kalavai_nb.session import Session
from kalavai_nb.trials.shelf import sweeps


class Ordered(Protocol):
    """A pool, as far as orders need one."""

    @property
    def engine(self) -> Engine: ...

    @property
    def session(self) -> Session: ...

    @property
    def models(self) -> list[ShardedLM]: ...

    def invite(self) -> str: ...


def carry_out(pool: Ordered, verb: str, target: str) -> str:
    """Do it; returns the sentence that says what was done.

    ``target`` is the id of a sweep, a cell, a model or a lease in the snapshot. Raises OptionError for what is not
    known here or not this notebook's, and what the thing itself raises.
    """
    if verb not in VERBS:
        raise OptionError(f"the order {verb!r} is not known here; there is: {', '.join(VERBS)}.")
    if verb == "invite":
        return pool.invite()
    return {
        "stop_sweep": _stop_sweep,
        "stop_cell": _stop_cell,
        "close_model": _close_model,
        "release": _release,
    }[verb](pool, target)


def _stop_sweep(pool: Ordered, target: str) -> str:
    for sweep in sweeps.live():
        seen = sweep.look(pool.engine)
        if seen and seen.id == target:
            if not sweep.is_running:
                raise OptionError(f"{sweep.name} has ended already: there is nothing to stop.")
            sweep.stop()
            done = sum(trial.state.is_finished() and trial.state != "STOPPED" for trial in sweep.trials)
            return f"{sweep.name} is stopped; {done} of {len(sweep)} trials are done and kept."
    raise OptionError("there is no such sweep in this notebook any more: there is nothing to stop.")


def _stop_cell(pool: Ordered, target: str) -> str:
    for run in pool.session.running():
        if run.id == target:
            run.cancel()
            return f"cell {run.number} is told to stop."
    raise OptionError("this cell has ended already: there is nothing to stop.")


def _close_model(pool: Ordered, target: str) -> str:
    for model in pool.models:
        seen = model.look(pool.engine.owner)
        if seen and seen.id == target:
            model.close()
            return f"{model.name} is closed; its devices are free."
    raise OptionError("there is no such model in this notebook any more: there is nothing to close.")


def _release(pool: Ordered, target: str) -> str:
    """End the idle ranks of a lease, so that others get its devices."""
    lease = next((lease for lease in pool.engine.snapshot(timeout_seconds=10).leases if lease.id == target), None)
    if lease is None:
        raise OptionError("this device is free already: there is nothing to release.")
    if lease.owner != pool.engine.owner:
        raise OptionError(f"this device is held by {lease.holder}: only that notebook can release it.")
    if lease.kind != "session":
        raise OptionError(f"this device is at work for {lease.what or lease.kind}: stop that instead.")
    if lease.running:
        raise OptionError("a cell runs on this device: stop the cell first.")
    lost = pool.session.roster.release(target, "was released by a button")
    if lost is None:
        raise KalavaiError("this device was released meanwhile: there is nothing left to release.")
    return "released." + (f" Lost with it: {', '.join(lost)}." if lost else "")
