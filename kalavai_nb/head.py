"""The head of a pool: a process with Dask's scheduler and the ledger. Runs no user code.

Owners talk to it by Dask's own connections: messages on the stream that each client has, which keep their order; a few
calls with replies; and events on a topic of each owner. Messages to workers go through the head, so that an owner needs
to reach nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from kalavai_nb.errors import KalavaiError, NotEnoughDevices
from kalavai_nb.ledger import Evict, Ledger, Refused, Yield
from kalavai_nb.security import Identity
from kalavai_nb.state import Device, Lease, Need, Snapshot

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)

Message = dict[str, Any]

CONFIG = {
    # the scheduler keeps this many events per topic and messages per comm: output must not pile up there
    "distributed.admin.low-level-log-length": 8,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # user code runs in children of the workers, so a worker that is silent for so long is gone
    "distributed.scheduler.worker-ttl": "15s",
    # Dask's own NVML sampling crashes on a lost GPU
    "distributed.diagnostics.nvml": False,
    "distributed.comm.timeouts.connect": "10s",
    # no tasks run here, so there is nothing to profile, and no reason to wake up fifty times a second
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


def topic(owner: str) -> str:
    """The event topic on which an owner hears of its leases and the output of its ranks."""
    return f"kalavai/{owner}"


class LedgerPlugin(SchedulerPlugin):
    """Carries the ledger's decisions out: the only place where a ledger meets Dask and a clock."""

    name = "kalavai-ledger"

    def __init__(self, pool: str, idle_seconds: float) -> None:
        self.pool = pool
        self.ledger = Ledger(idle_seconds)
        self._then: dict[str, tuple[tuple[str, ...], list[tuple[str, Message]]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        for call in (self.kn_hello, self.kn_call, self.kn_snapshot):
            scheduler.handlers[call.__name__] = call
        for message in (self.kn_request, self.kn_cancel, self.kn_rest, self.kn_release, self.kn_tell):
            scheduler.stream_handlers[message.__name__] = message

    # what Dask tells us

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        fields = scheduler.workers[worker].extra.get("device")
        if fields:
            self.ledger.add_device(Device(**{**fields, "worker": worker}))
            self._schedule()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        for device in [d for d in self.ledger.devices.values() if d.worker == worker]:
            for lease in self.ledger.remove_device(device.id, time.time()):
                self._later(self._clear(lease))
        # an owner may have ranks there without a lease (gpus=0), so every owner is told
        for owner in self.ledger.owners:
            self._to_owner(owner, {"kind": "lost", "worker": worker})
        self._schedule()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client in self.ledger.owners:
            held = {device for lease in self.ledger.remove_owner(client) for device in lease.devices}
            for device in held:
                self.ledger.clearing(device)
            queued = {waiting.id for waiting in self.ledger.waiting(time.time())}
            self._then = {request: then for request, then in self._then.items() if request in queued}
            self._later(self._end_owner(client, held))

    # what owners say, in order: one stream from each, so that a lease is rested before it is asked for again

    def kn_request(self, client: str, request: str, need: Message, then: list[tuple[str, Message]]) -> None:
        """Ask for devices; the answer is an event: ``grant``, ``wait`` with a reason, or ``refused``.

        ``then`` is told to workers in the same step in which the request is granted, if that wakes all it meant to
        wake; the grant says so in ``told``.
        """
        need = {**need, **{name: tuple(need[name]) for name in ("wakes", "avoid", "prefer")}}
        try:
            self.ledger.request(request, Need(**need), time.time())
        except KalavaiError as error:
            self._refuse(client, request, error)
            return
        self._then[request] = (need["wakes"], then)
        self._schedule()

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

    def kn_tell(self, client: str, messages: list[tuple[str, Message]]) -> None:
        """Pass each message on to its worker, which answers by events. A worker that is gone is told of as ``lost``."""
        for worker, message in messages:
            if worker in self.scheduler.stream_comms:
                self.scheduler.stream_comms[worker].send(message)
            else:
                self._to_owner(client, {"kind": "lost", "worker": worker})

    # what owners ask

    async def kn_hello(self, owner: str, label: str) -> Message:
        self.ledger.add_owner(owner, label)
        return {"pool": self.pool}

    async def kn_call(self, messages: list[tuple[str, Message]]) -> list[Message]:
        """Send each worker its message; the replies, in order. A worker that is gone replies ``{"gone": why}``."""
        return await asyncio.gather(*(self._call(worker, message) for worker, message in messages))

    async def kn_snapshot(self) -> Message:
        ledger, now = self.ledger, time.time()
        devices = sorted(ledger.devices.values(), key=lambda d: (d.host, d.machine, d.index))
        leases, queue = tuple(ledger.leases.values()), tuple(ledger.waiting(now))
        return Snapshot(self.pool, now, tuple(devices), leases, queue, dict(ledger.owners)).to_dict()

    # carrying out

    def _schedule(self) -> None:
        """Let the ledger decide, do what it says, and tell those who wait why."""
        now = time.time()
        for decision in self.ledger.schedule(now):
            if isinstance(decision, Evict):
                self._later(self._evict(decision))
                continue
            if isinstance(decision, Yield):
                self._to_owner(decision.lease.owner, {"kind": "yield", "lease": decision.lease.id})
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
        for waiting in self.ledger.waiting(now):
            self._to_owner(waiting.owner, {"kind": "wait", "request": waiting.id, "reason": waiting.reason})
        if self._look:
            self._look.cancel()
        pause = self.ledger.next_look_seconds(now)
        self._look = asyncio.get_running_loop().call_later(pause, self._schedule) if pause else None

    def _refuse(self, owner: str, request: str, error: KalavaiError) -> None:
        event = {"kind": "refused", "request": request, "error": type(error).__name__, "text": str(error)}
        self._to_owner(owner, event)

    def _to_owner(self, owner: str, event: Message) -> None:
        self.scheduler.log_event(topic(owner), event)

    def _later(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

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
        self._to_owner(evict.lease.owner, event)

    async def _clear(self, lease: Lease) -> None:
        """End the rank of a lease that is no more, before its devices go to the next."""
        for device in lease.devices:
            self.ledger.clearing(device)
        workers = {self.ledger.devices[id].worker for id in lease.devices if id in self.ledger.devices}
        await self.kn_call([(worker, {"op": "kn_end_ranks", "lease": lease.id}) for worker in workers])
        for device in lease.devices:
            self.ledger.cleared(device)
        self._schedule()

    async def _end_owner(self, owner: str, held: set[str]) -> None:
        """End what a vanished owner left running before its devices go to the next."""
        workers = list(self.scheduler.workers)
        await self.kn_call([(worker, {"op": "kn_end_owner", "owner": owner}) for worker in workers])
        for device in held:
            self.ledger.cleared(device)
        self._schedule()


async def serve(
    pool: str, host: str, port: int, idle_seconds: float, identity: Identity, ready: Callable[[str], None]
) -> None:
    """Run a scheduler with a ledger until SIGTERM; ``ready(address)`` is called when it listens."""
    import dask.config
    from distributed import Scheduler

    with dask.config.set(CONFIG):
        scheduler = Scheduler(
            protocol="tls",
            host=host,
            port=port,
            security=identity.security(),
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            plugins=[LedgerPlugin(pool, idle_seconds)],
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: asyncio.ensure_future(scheduler.close(reason="told to end"))
        )
        async with scheduler:
            ready(scheduler.address)
            await scheduler.finished()
