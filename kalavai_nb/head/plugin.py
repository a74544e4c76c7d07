"""The ledger's place in Dask's scheduler: what owners and workers say goes in, and its decisions are carried out."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from kalavai_nb.errors import KalavaiError, NotEnoughDevices
from kalavai_nb.fields import made, number, text, whole
from kalavai_nb.head.config import topic
from kalavai_nb.head.waits import Waits
from kalavai_nb.ledger import AWAY_SECONDS, Drained, Evict, Ledger, Refused, Yield
from kalavai_nb.overview import Overview
from kalavai_nb.reading import Machine, Reading
from kalavai_nb.state import Device, Lease, Need, Waiting

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)

Message = dict[str, Any]

# what an owner left running has ended by then, or its worker is gone
END_SECONDS = 15.0
# the machines of a head that was started again are there by then
YOUNG_SECONDS = 45.0


class LedgerPlugin(SchedulerPlugin):
    """Carries the ledger's decisions out: the only place where a ledger meets Dask and a clock."""

    name = "kalavai-ledger"

    def __init__(self, pool: str, id: str, idle_seconds: float, away_seconds: float = AWAY_SECONDS) -> None:
        self.pool, self.id = pool, id
        # only a pool that others join has machines that were here before its head was
        young_seconds = YOUNG_SECONDS if away_seconds > AWAY_SECONDS else 0.0
        self.ledger = Ledger(idle_seconds, away_seconds, time.time() + young_seconds)
        self.overview = Overview()
        self._waits = Waits(self.ledger, self._tell_why)
        # owners that are gone, until what they left running has ended
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._then: dict[str, tuple[tuple[str, ...], list[tuple[str, Message]]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        for call in (self.kn_hello, self.kn_call, self.kn_snapshot):
            scheduler.handlers[call.__name__] = call
        said = (self.kn_request, self.kn_cancel, self.kn_rest, self.kn_release, self.kn_recast, self.kn_tell)
        for message in (*said, self.kn_reading, self.kn_limits, self.kn_drain, self.kn_stay):
            scheduler.stream_handlers[message.__name__] = _guarded(message)

    async def close(self) -> None:
        self._waits.close()
        if self._look:
            self._look.cancel()

    # what Dask tells us

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        fields = scheduler.workers[worker].extra.get("device")
        if fields:
            self.lend(Device(**{**fields, "worker": worker}))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        left = [self._lose(device) for device in self._lent_by(worker)]
        # an owner may have ranks there without a lease (gpus=0), so every owner is told
        for owner in self.ledger.owners:
            self._to_owner(owner, {"kind": "lost", "worker": worker, "left": "".join(left[:1])})
        self._schedule()

    def lend(self, device: Device) -> None:
        """This device can be had from now on."""
        before = self.ledger.devices.get(device.id)
        if before and before.worker != device.worker:
            # it is back before it was missed: what ran there has ended with the worker that it had
            self.remove_worker(self.scheduler, before.worker)
        self.ledger.add_device(device)
        self.overview.join(device, time.time())
        self._schedule()

    def set_links(self, a: str, b: str, mutual: bool) -> None:
        """The ways between two machines were measured; ``mutual`` is whether each can dial the other."""
        self.ledger.set_links(a, b, mutual)
        self._schedule()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client in self.ledger.owners:
            self.overview.forget(client)
            self.overview.note("left", f"{self.ledger.owners[client]} left", time.time())
            held = {device for lease in self.ledger.remove_owner(client) for device in lease.devices}
            for device in held:
                self.ledger.clearing(device)
            queued = self.ledger.queued
            self._then = {request: then for request, then in self._then.items() if request in queued}
            self._ending[client] = self._later(self._end_owner(client, held))

    # what owners say, in order: one stream from each, so that a lease is rested before it is asked for again

    def kn_request(self, client: str, request: str, need: Message, then: list[tuple[str, Message]]) -> None:
        """Ask for devices; the answer is an event: ``grant``, ``wait`` with a reason, or ``refused``.

        ``then`` is told to workers in the same step in which the request is granted, if that wakes all it meant to
        wake; the grant says so in ``told``.
        """
        wish = made(Need, need)
        try:
            self.ledger.request(request, wish, time.time())
        except KalavaiError as error:
            self._refuse(client, request, error)
            return
        self._then[request] = (wish.wakes, then)
        self._schedule()
        self._waits.begin(request)

    def kn_cancel(self, client: str, request: str) -> None:
        """Ask no more. ``cancelled`` is the last event of the request; a grant that crossed it comes before."""
        self.ledger.cancel(request)
        self._then.pop(request, None)
        self._to_owner(client, {"kind": "cancelled", "request": request})
        self._schedule()

    def kn_rest(self, client: str, leases: list[str]) -> None:
        self.ledger.rest(leases, time.time())
        self._schedule()

    def kn_release(self, client: str, leases: list[str]) -> None:
        self.ledger.release(leases)
        self._schedule()

    def kn_recast(self, client: str, leases: list[str], kind: str) -> None:
        self.ledger.recast(leases, kind)

    def kn_tell(self, client: str, messages: list[tuple[str, Message]]) -> None:
        """Pass each message on to its worker, which answers by events. A worker that is gone is told of as ``lost``."""
        for worker, message in messages:
            if not self._tell_worker(worker, message):
                self._to_owner(client, {"kind": "lost", "worker": worker})

    # what workers say

    def kn_reading(self, worker: str, device: str, reading: Message, machine: Message) -> None:
        self.overview.hear(device, Reading.from_fields(reading), made(Machine, machine), time.time())

    def kn_limits(self, worker: str, device: str, limits: str, memory: int) -> None:
        """From now on its owner lends this much of a device."""
        there = self.ledger.devices.get(device)
        if there and there.worker == worker:
            self.ledger.add_device(replace(there, limits=text(limits), memory_bytes=whole(memory)))
            self.overview.note("limits", f"{there} is lent with other limits: {text(limits) or 'none'}", time.time())
            self._schedule()

    def kn_drain(self, worker: str, why: str, grace_seconds: float) -> None:
        """Who lends the devices of this worker takes them back: empty them, and say ``kn_drained`` when they are."""
        now, grace = time.time(), max(0.0, number(grace_seconds))
        for device in self._lent_by(worker):
            if not self.ledger.why_leaving(device.id):
                self.overview.note("leaving", f"{device} is leaving within {grace:.0f} s: {text(why)}", now)
            self.ledger.leave(device.id, text(why), now + grace)
        self._schedule()

    def kn_stay(self, worker: str) -> None:
        """They are not taken back, after all."""
        now = time.time()
        for device in self._lent_by(worker):
            if self.ledger.why_leaving(device.id):
                self.ledger.stay(device.id)
                self.overview.note("stays", f"{device} stays", now)
        self._schedule()

    # what owners ask

    async def kn_hello(self, owner: str, label: str) -> Message:
        label = text(label)
        if owner in self._ending:
            # it was cut off, and is back: what it left is ended first, or what it begins now would be ended with that
            await asyncio.wait([self._ending[owner]], timeout=END_SECONDS)
        self.ledger.add_owner(owner, label)
        self.overview.note("joined", f"{label} joined", time.time())
        return {"pool": self.pool, "id": self.id}

    async def kn_call(self, messages: list[tuple[str, Message]]) -> list[Message]:
        """Send each worker its message; the replies, in order. A worker that is gone replies ``{"gone": why}``."""
        return await asyncio.gather(*(self._call(worker, message) for worker, message in messages))

    async def kn_snapshot(self, owner: str = "", activities: Message | None = None) -> Message:
        """The pool now. ``activities`` is what its asker runs, its cells, sweeps and models, for all to see."""
        ledger, now = self.ledger, time.time()
        if owner in ledger.owners and activities is not None:
            self.overview.tell(owner, activities)
        devices = sorted(ledger.devices.values(), key=lambda d: (d.host, d.machine, d.index))
        leases, queue = tuple(ledger.leases.values()), self._waits.listing()
        snapshot = self.overview.snapshot(self.id, self.pool, tuple(devices), leases, queue, ledger.owners, now)
        return replace(snapshot, leaving=ledger.leaving(now)).to_fields()

    # carrying out

    def _schedule(self) -> None:
        """Let the ledger decide, and do what it says."""
        now = time.time()
        for decision in self.ledger.schedule(now):
            if isinstance(decision, Evict):
                self._later(self._evict(decision))
                continue
            if isinstance(decision, Drained):
                self._tell_worker(self.ledger.devices[decision.device].worker, {"op": "kn_drained"})
                continue
            if isinstance(decision, Yield):
                self._to_owner(
                    decision.lease.owner, {"kind": "yield", "lease": decision.lease.id, "leaving": decision.is_leaving}
                )
                continue
            wakes, then = self._then.pop(decision.request, ((), []))
            if isinstance(decision, Refused):
                self._refuse(decision.owner, decision.request, NotEnoughDevices(decision.reason))
                continue
            leases = [asdict(lease) for lease in decision.leases]
            told = bool(then) and [lease["id"] for lease in leases] == list(wakes)
            if told:
                self.kn_tell(decision.owner, then)
            grant = {"kind": "grant", "request": decision.request, "leases": leases, "told": told}
            self._to_owner(decision.owner, grant)
        self._waits.change()
        if self._look:
            self._look.cancel()
        pause = self.ledger.next_look_seconds(now)
        self._look = asyncio.get_running_loop().call_later(pause, self._schedule) if pause else None

    def _refuse(self, owner: str, request: str, error: KalavaiError) -> None:
        event = {"kind": "refused", "request": request, "error": type(error).__name__, "text": str(error)}
        self._to_owner(owner, event)

    def _to_owner(self, owner: str, event: Message) -> None:
        self.scheduler.log_event(topic(owner), event)

    def _tell_why(self, waiting: Waiting) -> None:
        self._to_owner(waiting.owner, {"kind": "wait", "request": waiting.id, "reason": waiting.reason})

    def _tell_worker(self, worker: str, message: Message) -> bool:
        """Whether it is there to be told."""
        if worker not in self.scheduler.stream_comms:
            return False
        self.scheduler.stream_comms[worker].send(message)
        return True

    def _lent_by(self, worker: str) -> list[Device]:
        return [device for device in self.ledger.devices.values() if device.worker == worker]

    def _lose(self, device: Device) -> str:
        """The device is gone, and with it its leases. Why it left, where it was not lost."""
        now = time.time()
        why = self.ledger.why_leaving(device.id)
        if why:
            self.overview.leave(device, now)
        else:
            self.overview.lose(device, now)
        for lease in self.ledger.remove_device(device.id, now):
            for other in lease.devices:
                self.ledger.clearing(other)
            self._later(self._clear(lease))
        return why

    def _later(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _call(self, worker: str, message: Message) -> Message:
        arguments = dict(message)
        operation = arguments.pop("op")
        if worker not in self.scheduler.workers:
            return {"gone": f"the worker {worker} has left the pool"}
        try:
            reply: Message = await getattr(self.scheduler.rpc(worker), operation)(**arguments)
            return reply
        except OSError as error:
            return {"gone": f"the worker {worker} cannot be reached: {error}"}

    async def _evict(self, evict: Evict) -> None:
        await self._clear(evict.lease)
        event = {"kind": "evicted", "lease": evict.lease.id, "wanted_by": evict.wanted_by}
        text = f"{evict.wanted_by} was given a device of an idle session of {evict.lease.label}"
        self.overview.note("evicted", text, time.time())
        self._to_owner(evict.lease.owner, event)

    async def _clear(self, lease: Lease) -> None:
        """End the rank of a lease that is no more, before its devices go to the next."""
        workers = {self.ledger.devices[id].worker for id in lease.devices if id in self.ledger.devices}
        await self.kn_call([(worker, {"op": "kn_end_ranks", "lease": lease.id}) for worker in workers])
        for device in lease.devices:
            self.ledger.cleared(device)
        self._schedule()

    async def _end_owner(self, owner: str, held: set[str]) -> None:
        """End what a vanished owner left running before its devices go to the next."""
        workers = {device.worker for device in self.ledger.devices.values()}
        await self.kn_call([(worker, {"op": "kn_end_owner", "owner": owner}) for worker in workers])
        self._ending.pop(owner, None)
        for device in held:
            self.ledger.cleared(device)
        self._schedule()


def _guarded(handler: Callable[..., None]) -> Callable[..., None]:
    """What cannot be understood is one message lost: Dask would end the connection of whoever said it."""

    @functools.wraps(handler)
    def guarded(**message: Any) -> None:
        try:
            handler(**message)
        except Exception:
            logger.warning("a message that cannot be understood: %s", handler.__name__, exc_info=True)

    return guarded
