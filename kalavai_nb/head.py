"""The head of a pool: a process with Dask's scheduler and the ledger. Runs no user code.

Owners talk to it by Dask's own connections: handlers named ``kn_*`` on the scheduler, and events on a topic of each
owner. A message to workers goes through ``kn_call``, so that an owner needs to reach nothing but the head.
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

from kalavai_nb.ledger import Evict, Ledger
from kalavai_nb.security import Identity
from kalavai_nb.state import Device, Need, Snapshot

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)

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
        self._background: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        for handler in (
            self.kn_hello,
            self.kn_request,
            self.kn_cancel,
            self.kn_rest,
            self.kn_release,
            self.kn_call,
            self.kn_snapshot,
        ):
            scheduler.handlers[handler.__name__] = handler

    # what Dask tells us

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        fields = scheduler.workers[worker].extra.get("device")
        if fields:
            self.ledger.add_device(Device(**{**fields, "worker": worker}))
            self._schedule()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        for device in [d for d in self.ledger.devices.values() if d.worker == worker]:
            self.ledger.remove_device(device.id, time.time())
        # an owner may have ranks there without a lease (gpus=0), so every owner is told
        for owner in self.ledger.owners:
            self._tell(owner, {"kind": "lost", "worker": worker})
        self._schedule()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client in self.ledger.owners:
            held = {device for lease in self.ledger.remove_owner(client) for device in lease.devices}
            for device in held:
                self.ledger.clearing(device)
            self._later(self._end_owner(client, held))

    # what owners ask

    async def kn_hello(self, owner: str, label: str) -> dict[str, Any]:
        self.ledger.add_owner(owner, label)
        return {"pool": self.pool}

    async def kn_request(self, request: str, need: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The leases where they can be granted at once; else None, and they come as an event."""
        self.ledger.request(
            request, Need(**{**need, "wakes": tuple(need["wakes"]), "avoid": tuple(need["avoid"])}), time.time()
        )
        return self._schedule(silent_for=request)

    async def kn_cancel(self, request: str) -> None:
        self.ledger.cancel(request)
        self._schedule()

    async def kn_rest(self, leases: list[str]) -> None:
        self.ledger.rest(leases, time.time())
        self._schedule()

    async def kn_release(self, leases: list[str]) -> None:
        self.ledger.release(leases)
        self._schedule()

    async def kn_call(self, messages: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Send each worker its message; the replies, in order. A worker that is gone replies ``{"gone": why}``."""
        return await asyncio.gather(*(self._call(worker, message) for worker, message in messages))

    async def kn_snapshot(self) -> dict[str, Any]:
        ledger, now = self.ledger, time.time()
        devices = sorted(ledger.devices.values(), key=lambda d: (d.host, d.machine, d.index))
        leases, queue = tuple(ledger.leases.values()), tuple(ledger.waiting(now))
        return Snapshot(self.pool, now, tuple(devices), leases, queue, dict(ledger.owners)).to_dict()

    # carrying out

    def _schedule(self, silent_for: str = "") -> list[dict[str, Any]] | None:
        """Let the ledger decide, do what it says, and tell those who wait why."""
        now, answer = time.time(), None
        for decision in self.ledger.schedule(now):
            if isinstance(decision, Evict):
                self._later(self._evict(decision))
                continue
            leases = [asdict(lease) for lease in decision.leases]
            if decision.request == silent_for:
                answer = leases
            else:
                self._tell(decision.owner, {"kind": "grant", "request": decision.request, "leases": leases})
        for waiting in self.ledger.waiting(now):
            self._tell(waiting.owner, {"kind": "wait", "request": waiting.id, "reason": waiting.reason})
        if self._look:
            self._look.cancel()
        pause = self.ledger.next_look_seconds(now)
        self._look = asyncio.get_running_loop().call_later(pause, self._schedule) if pause else None
        return answer

    def _tell(self, owner: str, event: dict[str, Any]) -> None:
        self.scheduler.log_event(topic(owner), event)

    def _later(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _call(self, worker: str, message: dict[str, Any]) -> dict[str, Any]:
        arguments = dict(message)
        operation = arguments.pop("op")
        if worker not in self.scheduler.workers:
            return {"gone": f"the worker {worker} has left the pool"}
        try:
            reply: dict[str, Any] = await getattr(self.scheduler.rpc(worker), operation)(**arguments)
            return reply
        except OSError as error:
            return {"gone": f"the worker {worker} cannot be reached: {error}"}

    async def _evict(self, evict: Evict) -> None:
        lease = evict.lease
        workers = {self.ledger.devices[id].worker for id in lease.devices if id in self.ledger.devices}
        await self.kn_call([(worker, {"op": "kn_end_ranks", "lease": lease.id}) for worker in workers])
        self._tell(lease.owner, {"kind": "evicted", "lease": lease.id, "wanted_by": evict.wanted_by})
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
