"""Asking the head for devices, and waiting for them. Whoever stops waiting keeps nothing, whenever the grant comes."""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from kalavai_nb.errors import NotEnoughDevices, PoolClosed
from kalavai_nb.state import Lease, Need

LOOK_SECONDS = 0.2
WITHDRAW_SECONDS = 5.0
AWAY = "the connection to the pool is lost at this moment, and tried for again"

Event = dict[str, Any]
Message = dict[str, Any]


class ToldAlready(BaseException):
    """Whoever asked has stopped waiting (its cause says why), but has it, and workers do what they were told."""


class Connection(Protocol):
    """What is asked over: see `Engine`."""

    @property
    def is_away(self) -> bool: ...

    def check(self) -> None: ...

    def unlisten(self, key: str, sink: Callable[[Event], None]) -> None: ...

    def request(
        self, need: Need, on_event: Callable[[Event], None], then: Iterable[tuple[str, Message]] = (), name: str = ""
    ) -> str: ...

    def cancel(self, request: str) -> None: ...

    def rest(self, leases: Iterable[str]) -> None: ...

    def release(self, leases: Iterable[str]) -> None: ...

    def tell(self, messages: Iterable[tuple[str, Message]]) -> None: ...


class Asking:
    """One request that is waited for."""

    def __init__(self, connection: Connection, need: Need, then: Iterable[tuple[str, Message]]) -> None:
        self._connection, self._need, self._then = connection, need, list(then)
        self._name = secrets.token_hex(4)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._grants: list[Event] = []
        self._is_left = False

    def wait(self, wait_seconds: float | None, on_wait: Callable[[str], None]) -> tuple[list[Lease], bool]:
        """See `Engine.acquire`."""
        try:
            self._connection.request(self._need, self._hear, self._then, self._name)
            answer = self._answer(wait_seconds, on_wait)
            self._connection.unlisten(self._name, self._hear)
        except BaseException as error:
            if self._withdraw():
                raise ToldAlready from error
            raise
        return _granted(answer), answer.get("told", False)

    # inside

    def _hear(self, event: Event) -> None:
        """On Dask's thread."""
        if event["kind"] == "grant":
            self._grants.append(event)
        self._events.put(event)
        if self._is_left:
            self._give_back()

    def _answer(self, wait_seconds: float | None, on_wait: Callable[[str], None]) -> Event:
        """The grant or refusal. The first event comes at once, so even no patience at all waits for it."""
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        reason = ""
        while not reason or deadline is None or time.monotonic() < deadline:
            try:
                event = self._events.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._connection.check()
                if self._connection.is_away and reason != AWAY:
                    reason = AWAY
                    on_wait(reason)
                continue
            if event["kind"] in ("grant", "refused"):
                return event
            if event["reason"] != reason:
                reason = event["reason"]
                on_wait(reason)
        raise NotEnoughDevices(f"{self._need} did not come free within {wait_seconds:.0f} s: {reason}")

    def _withdraw(self) -> bool:
        """Ask no more; if it was granted meanwhile, give it back, or return that workers were told of it already.

        A head that takes long, or another interrupt, ends the waiting; what is granted later is given back as it comes.
        """
        try:
            if not self._grants:
                self._connection.cancel(self._name)
                while self._events.get(timeout=WITHDRAW_SECONDS)["kind"] != "cancelled":
                    pass
            if any(event["told"] for event in self._grants):
                self._connection.unlisten(self._name, self._hear)
                return True
        except (PoolClosed, queue.Empty):
            pass
        except BaseException:
            # it may not have been said yet; twice is as good as once
            with contextlib.suppress(PoolClosed):
                self._connection.cancel(self._name)
            self._leave()
            raise
        self._leave()
        return False

    def _leave(self) -> None:
        """Whoever finds a grant from now on gives it back. That it was cancelled is the last that is heard of it."""
        self._is_left = True
        self._give_back()

    def _give_back(self) -> None:
        # this thread and Dask's may both be here: each grant is popped once
        with contextlib.suppress(IndexError, PoolClosed):
            while True:
                event = self._grants.pop()
                leases = [lease["id"] for lease in event["leases"]]
                if event["told"]:
                    # what was begun in the same step is seen by nobody
                    self._connection.tell(_interrupts(self._then))
                self._connection.rest(id for id in leases if id in self._need.wakes)
                self._connection.release(id for id in leases if id not in self._need.wakes)


def _interrupts(told: Sequence[tuple[str, Message]]) -> list[tuple[str, Message]]:
    """What stops these cells."""
    stop = {"op": "kn_interrupt", "reason": "it was interrupted"}
    return [(worker, {**stop, "generations": [message["generation"]]}) for worker, message in told]


def _granted(event: Event) -> list[Lease]:
    """The leases of a grant. Raises the ledger's error for a refusal."""
    if event["kind"] == "refused":
        raise {"PoolClosed": PoolClosed}.get(event["error"], NotEnoughDevices)(event["text"])
    return [Lease(**{**lease, "devices": tuple(lease["devices"])}) for lease in event["leases"]]
