"""Measures the ways between the machines of a pool, each direction, when one joins; and asks how machines are.

It goes on beside everything else: few at a time, no machine in two at once, and nobody waits for it but gangs that have
to know whether their ranks will reach each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from kalavai_nb.fields import made
from kalavai_nb.head.plugin import LedgerPlugin, Message
from kalavai_nb.state import Link

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)

AT_ONCE = 8
# what is in the way of a measurement may answer never
ANSWER_SECONDS = 30.0
CONDITION_SECONDS = 5.0
PINGS = 3


class RoadsPlugin(SchedulerPlugin):
    """Knows which workers each machine has, and has two of them measure the way between theirs."""

    name = "kalavai-roads"

    def __init__(self, ledger: LedgerPlugin) -> None:
        self._ledger = ledger
        self._workers: dict[str, list[str]] = {}
        self._addresses: dict[str, list[str]] = {}
        # by machine: for as long as it is there, one measurement at a time, and how far the head is
        self._busy: dict[str, asyncio.Lock] = {}
        self._distance: dict[str, asyncio.Task[float | None]] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        for call in (self.kn_conditions, self.kn_versions):
            scheduler.handlers[call.__name__] = call

    async def close(self) -> None:
        for task in [*self._tasks, *self._distance.values()]:
            task.cancel()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        extra = scheduler.workers[worker].extra
        if not extra.get("device"):
            return
        machine, addresses = extra["device"]["machine"], extra.get("addresses", [])
        others = [other for other in self._workers if other != machine]
        self._workers.setdefault(machine, []).append(worker)
        if self._addresses.get(machine) == addresses:
            return
        # it is new, or has moved into another network
        self._addresses[machine], self._busy[machine] = addresses, asyncio.Lock()
        for other in others:
            task = asyncio.get_running_loop().create_task(self._measure_both(machine, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        for machine, workers in list(self._workers.items()):
            if worker in workers:
                workers.remove(worker)
                if not workers:
                    del self._workers[machine], self._busy[machine], self._addresses[machine]
                    if distance := self._distance.pop(machine, None):
                        distance.cancel()

    # what owners ask

    async def kn_versions(self) -> dict[str, dict[str, str]]:
        """The versions of each machine, as it said them when it joined."""
        found = {}
        for machine, workers in self._workers.items():
            extra = self.scheduler.workers[workers[0]].extra
            found[machine] = {"host": extra["device"]["host"], **extra.get("versions", {})}
        return found

    async def kn_conditions(self) -> dict[str, Message]:
        """How each machine is now, and its clock against ours; of one that does not answer, nothing."""
        machines = list(self._workers)
        found = await asyncio.gather(*(self._condition(machine) for machine in machines))
        return dict(zip(machines, found, strict=True))

    async def _condition(self, machine: str) -> Message:
        asked = time.time()
        condition = await self._ask(machine, "kn_condition", CONDITION_SECONDS) or {}
        if condition:
            condition["ahead_seconds"] = condition["clock"] - (asked + time.time()) / 2
        return condition

    # measuring

    async def _measure_both(self, a: str, b: str) -> None:
        """The ways between two machines, unless one of them goes meanwhile: it will be measured when it comes again."""
        locks = [self._busy.get(machine) for machine in sorted((a, b))]
        first, second = locks
        if first is None or second is None:
            return
        async with first, second, self._at_once:
            links = []
            for source, target in ((a, b), (b, a)):
                link = await self._measure(source, target)
                if link is None or self._busy.get(a) not in locks or self._busy.get(b) not in locks:
                    return
                links.append(link)
        for link in links:
            self._ledger.overview.measure(link)
        self._ledger.set_links(a, b, all(link.direct for link in links))

    async def _measure(self, source: str, target: str) -> Link | None:
        nonce = secrets.token_hex(16)
        door = await self._ask(target, "kn_listen", nonce=nonce)
        if door is None:
            return None
        said: Message | None = {}
        if door["port"]:
            said = await self._ask(source, "kn_dial", nonce=nonce, **door)
        if said is None:
            return None
        ends = {"source": source, "target": target}
        if said:
            return made(Link, {**said, **ends, "direct": True})
        there, here = await asyncio.gather(self._far(source), self._far(target))
        rtt = None if there is None or here is None else there + here
        return made(Link, {**ends, "direct": False, "rtt_seconds": rtt})

    async def _far(self, machine: str) -> float | None:
        """How long a word to a machine and back takes, from here; measured once while it is there."""
        if machine not in self._workers:
            return None
        if machine not in self._distance:
            self._distance[machine] = asyncio.get_running_loop().create_task(self._time(machine))
        with contextlib.suppress(asyncio.CancelledError):
            return await asyncio.shield(self._distance[machine])
        return None

    async def _time(self, machine: str) -> float | None:
        best = None
        for _ in range(PINGS):
            started = time.perf_counter()
            if await self._ask(machine, "kn_clock", CONDITION_SECONDS) is not None:
                seconds = time.perf_counter() - started
                best = seconds if best is None else min(best, seconds)
        return best

    async def _ask(self, machine: str, operation: str, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Any:
        """What a worker of this machine answers; None where it is gone, or answers nothing that makes sense."""
        workers = self._workers.get(machine)
        if not workers:
            return None
        try:
            async with asyncio.timeout(seconds):
                return await getattr(self.scheduler.rpc(workers[0]), operation)(**arguments)
        except (OSError, TimeoutError):
            return None
        except Exception:  # what its worker raised
            logger.warning("%s was not answered by %s", operation, machine, exc_info=True)
            return None
