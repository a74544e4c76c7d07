"""The client side's only door to Dask: one connection to a head, its events, and calls to workers through it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kalavai_nb.asking import AWAY, Asking
from kalavai_nb.blobs import Packed
from kalavai_nb.errors import PoolClosed
from kalavai_nb.freight import Freight
from kalavai_nb.identity import Identity
from kalavai_nb.reunion import Reunion, hang_up
from kalavai_nb.security import dask_security
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device, Lease, Need

Event = dict[str, Any]
Message = dict[str, Any]


class Engine:
    """A connection of one owner to the head of a pool. Calls are made from any thread but Dask's own."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        label: str,
        timeout_seconds: float = 30.0,
        client: Any = None,
        patience_seconds: float = 0.0,
        proxy: int = 0,
    ) -> None:
        """Connect, or raise PoolClosed. A connection that is lost is made again for ``patience_seconds``.

        ``proxy`` is the port of this machine's link to the pool's gate; 0 where the head is on this machine.
        """
        self._again = "Open a new one with kn.Pool()." if client is None else "kn.Pool(cluster=…) connects to another."
        self._sinks: dict[str, list[Callable[[Event], None]]] = {}
        self._pid, self._reunion = os.getpid(), Reunion(patience_seconds, self._lose, self._return)
        self.give_up = self._reunion.give_up
        self._client = client if client is not None else self._connected(address, identity, timeout_seconds)
        self.owner: str = self._client.id
        self.identity, self.proxy, self._label = identity, proxy, label
        self.address: str = self._client.scheduler.address
        self._freight = Freight(self)
        from kalavai_nb.head.config import topic

        self._client.subscribe_topic(topic(self.owner), self._on_event)
        hello = self._ask("kn_hello", owner=self.owner, label=label)
        self.pool: str = hello["pool"]
        self.pool_id: str = hello["id"]

    # events

    def listen(self, key: str, sink: Callable[[Event], None]) -> None:
        """Give the events of one run or request to ``sink``, on Dask's thread; for ``""``, those of neither."""
        self._sinks.setdefault(key, []).append(sink)

    def unlisten(self, key: str, sink: Callable[[Event], None]) -> None:
        sinks = self._sinks.get(key, [])
        if sink in sinks:
            sinks.remove(sink)
        if not sinks:
            self._sinks.pop(key, None)

    # leases

    def acquire(
        self,
        need: Need,
        wait_seconds: float | None = None,
        on_wait: Callable[[str], None] = lambda _: None,
        then: Iterable[tuple[str, Message]] = (),
    ) -> tuple[list[Lease], bool]:
        """Block until the ledger grants ``need``. ``on_wait`` hears the reason whenever it changes.

        ``then`` is told to workers by the head in the same step, if that wakes all of ``need.wakes``; whether it was
        is returned beside the leases. Raises NotEnoughDevices where there never will be enough, or were not within
        ``wait_seconds``. Interrupted, it asks no more; `ToldAlready` is raised where that crossed what was told.
        """
        return Asking(self, need, then).wait(wait_seconds, on_wait)

    def request(
        self, need: Need, on_event: Callable[[Event], None], then: Iterable[tuple[str, Message]] = (), name: str = ""
    ) -> str:
        """Ask without waiting. ``on_event`` hears of the grant, or why there is none (yet), on Dask's thread.

        Returns what the request is called: ``name``, for whoever has to know it before.
        """
        request = name or secrets.token_hex(4)
        self.listen(request, on_event)
        asked = {"request": request, "need": asdict(need), "then": list(then)}
        self._reunion.open_requests[request] = asked
        self._say("kn_request", **asked)
        return request

    def cancel(self, request: str) -> None:
        """Ask no more, without waiting for the answer: a grant may have crossed this, and has to be released."""
        self._reunion.open_requests.pop(request, None)
        self._say("kn_cancel", request=request)

    def rest(self, leases: Iterable[str]) -> None:
        """These leases are idle from now on."""
        self._say("kn_rest", leases=list(leases))

    def release(self, leases: Iterable[str]) -> None:
        """Give these leases back."""
        self._say("kn_release", leases=list(leases))

    def recast(self, leases: Iterable[str], kind: str) -> None:
        """These leases are for something else from now on."""
        self._say("kn_recast", leases=list(leases), kind=kind)

    # workers

    def call(self, messages: Iterable[tuple[str, Message]]) -> list[Message]:
        """Send each worker its message, all at once; the replies in order. ``{"gone": why}`` is a reply, too."""
        calls = list(messages)
        self._reunion.workers.update(worker for worker, _ in calls)
        replies: list[Message] = self._ask("kn_call", messages=calls)
        return replies

    def tell(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Send each worker its message, without replies: what comes of it are events. Messages keep their order."""
        told = list(messages)
        self._reunion.workers.update(worker for worker, _ in told)
        self._say("kn_tell", messages=told)

    # content

    def place(
        self, packed: Iterable[Packed], devices: Iterable[Device], on_piece: Callable[[int], None] = lambda _: None
    ) -> None:
        """Bring content to every machine of these devices that does not have it. See `Freight.place`."""
        self._freight.place(packed, devices, on_piece)

    def drop(self, digests: Iterable[str], devices: Iterable[Device]) -> None:
        """Let machines forget content that nobody will ask for again."""
        self._freight.drop(digests, devices)

    def fetch(self, device: Device, handed: Message) -> Any:
        """The value that a rank on this device has handed out."""
        return self._freight.fetch(device, handed)

    def bring(self, device: Device, handed: Message, path: Path) -> None:
        """Bring what a trial on this device has handed out into a file. See `Freight.bring`."""
        self._freight.bring(device, handed, path)

    # the whole

    def snapshot(self, activities: Mapping[str, Any] | None = None, timeout_seconds: float | None = None) -> Snapshot:
        """The whole pool, as the head sees it now.

        ``activities`` is what this owner runs, for all to see: ``cells``, ``sweeps``, ``models``, as lists of fields.
        """
        asked = {} if activities is None else {"owner": self.owner, "activities": dict(activities)}
        return Snapshot.from_fields(self._ask("kn_snapshot", timeout_seconds, **asked))

    def versions(self) -> dict[str, dict[str, str]]:
        """Of Python and packages on each machine, as it said them when it joined, and its ``host``."""
        versions: dict[str, dict[str, str]] = self._ask("kn_versions")
        return versions

    def conditions(self) -> dict[str, Message]:
        """How each machine is now: its clock, certificate and disk; nothing of one that does not answer."""
        conditions: dict[str, Message] = self._ask("kn_conditions")
        return conditions

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, and none is tried for any more."""
        # a client that has to connect again is a stranger to the ledger: its leases ended with its connection
        return str(self._client.status) != "running" and not self._reunion.is_trying

    @property
    def is_away(self) -> bool:
        """Whether the connection is lost at this moment, and tried for again."""
        return self._reunion.is_trying

    def renew(self, identity: Identity) -> None:
        """Show a newer certificate on connections that are made from now on."""
        self.identity = identity
        self._client.security.renew(identity)

    def check(self) -> None:
        """Raise PoolClosed where there is no connection any more, or none of this process."""
        if os.getpid() != self._pid:
            raise PoolClosed("the pool is in the notebook that opened it; this process was forked from that.")
        if self.closed:
            raise PoolClosed(f"the connection to the pool is gone: {self._reunion.reason}. {self._again}")

    def close(self) -> None:
        """End the connection. Idempotent; the head ends what this owner left running."""
        hang_up(self._client)

    # inside

    def _connected(self, address: str, identity: Identity, timeout_seconds: float) -> Any:
        from distributed import Client

        try:
            return self._reunion.client_class(Client)(
                address,
                security=dask_security(identity),
                set_as_default=False,
                timeout=timeout_seconds,
                name="kalavai",
                direct_to_workers=False,
            )
        except (OSError, TimeoutError) as error:
            raise PoolClosed(
                f"the pool's head at {address} does not answer ({error}). Is the notebook that opened it still open?"
            ) from None

    def _ask(self, operation: str, timeout_seconds: float | None = None, **arguments: Any) -> Any:
        self.check()
        self._reunion.wait(timeout_seconds)
        self.check()
        if self.is_away:
            raise PoolClosed(AWAY)
        try:
            ask = getattr(self._client.scheduler, operation)
            return self._client.sync(ask, callback_timeout=timeout_seconds, **arguments)
        except TimeoutError:
            raise PoolClosed(f"the head of the pool has not answered for {timeout_seconds:g} s; ask again.") from None
        except (OSError, RuntimeError) as error:
            # a RuntimeError is Dask's word for connections that were closed while it was asked
            if isinstance(error, OSError) or self.closed:
                raise PoolClosed(f"the head of the pool does not answer any more ({error}). {self._again}") from None
            raise

    def _say(self, operation: str, **arguments: Any) -> None:
        self.check()
        self._client._send_to_scheduler({"op": operation, **arguments})

    def _lose(self) -> None:
        """On Dask's thread: the head ends what an owner leaves behind, so what ran is gone."""
        for worker in self._reunion.take_workers():
            self._on_event((0.0, {"kind": "lost", "worker": worker}))

    async def _return(self) -> None:
        """On Dask's thread: connected again, as a stranger. What was asked for is asked again."""
        from kalavai_nb.head.config import topic

        self._client._send_to_scheduler({"op": "subscribe-topic", "topic": topic(self.owner), "client": self.owner})
        await self._client.scheduler.kn_hello(owner=self.owner, label=self._label)
        # what was told meanwhile went nowhere
        self._lose()
        for asked in list(self._reunion.open_requests.values()):
            self._client._send_to_scheduler({"op": "kn_request", **asked})

    def _on_event(self, event: tuple[float, Event]) -> None:
        _, message = event
        if message["kind"] == "lost":
            self._freight.lose(message["worker"])
        if message["kind"] in ("grant", "refused", "cancelled"):
            self._reunion.open_requests.pop(message["request"], None)
        key = message.get("run") or message.get("request") or ""
        for sink in list(self._sinks.get(key, ())):
            sink(message)
        if message["kind"] == "cancelled":
            self._sinks.pop(key, None)
