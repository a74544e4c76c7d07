"""The ledger alone, at the size of a large pool: what a decision costs, how long each request waits.

``python -m tests.benchmarks.ledger 10000`` does it with fewer requests. Time is that of the process alone.
"""

from __future__ import annotations

import heapq
import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kalavai_nb.ledger import Evict, Granted, Ledger, Yield
from kalavai_nb.state import Device, Need
from tests.benchmarks.table import Row, figure, markdown

DEVICES, OWNERS, REQUESTS = 1000, 100, 100_000
LEAST_GRANTS_PER_SECOND = 2000
# of what there is, how much is asked for
LOADS = (0.7, 1.0, 1.5)
GIB = 2**30
MEAN_SECONDS = 30.0
KINDS = (("NVIDIA H100", 80, 7e14), ("NVIDIA A100", 40, 3e14), ("NVIDIA T4", 16, 6e13), ("EPYC", 8, 1e12))


def devices(count: int) -> list[Device]:
    """Machines of eight, four, two and one devices, of four kinds."""
    made: list[Device] = []
    for machine in range(count):
        name, memory, flops = KINDS[machine % 4]
        where: dict[str, Any] = {"host": f"box-{machine}", "machine": f"m{machine}", "memory_bytes": memory * GIB}
        kind = "cpu" if name == "EPYC" else "cuda"
        for index in range((8, 4, 2, 1)[machine % 4]):
            made.append(Device(id=f"d{len(made)}", index=index, kind=kind, name=name, flops=flops, **where))
    return made[:count]


@dataclass
class Simulation:
    """A pool in which owners ask, run, rest and give back, by a clock of its own.

    Each owner has a sweep beside its sessions, and one trial in seven asks for a share of a device.
    """

    load: float
    requests: int = REQUESTS
    waits: dict[str, list[float]] = field(default_factory=dict)
    owner_waits: dict[str, list[float]] = field(default_factory=dict)
    longest_queue: int = 0
    spent_seconds: float = 0.0
    slowest_seconds: float = 0.0
    evicted: int = 0
    asked_back: int = 0

    def run(self) -> Simulation:
        """Ask for all, and go on until all has been granted and has ended."""
        luck = random.Random(1)
        self.ledger = Ledger(idle_seconds=60.0)
        for device in devices(DEVICES):
            self.ledger.add_device(device)
        names = [f"owner-{number}" for number in range(OWNERS)]
        for name in names:
            self.ledger.add_owner(name, f"{name}.ipynb")
        needs = [_need(luck, luck.choice(names)) for _ in range(self.requests)]
        self._last = [luck.expovariate(1 / MEAN_SECONDS) for _ in needs]
        work = sum(need.count * need.share * last for need, last in zip(needs, self._last, strict=True))
        span = work / (DEVICES * self.load)
        self._asked: dict[str, tuple[float, Need]] = {}
        self._agenda: list[tuple[float, int, str, Any]] = [
            (luck.uniform(0, span), number, "ask", (str(number), need)) for number, need in enumerate(needs)
        ]
        heapq.heapify(self._agenda)
        self._number = self.requests
        while self._agenda:
            now, _, what, about = heapq.heappop(self._agenda)
            self._step(now, what, about)
            if not self._agenda and self._asked:
                self._later(now + (self.ledger.next_look_seconds(now) or 1.0), "look", None)
        return self

    def _step(self, now: float, what: str, about: Any) -> None:
        if what == "ask":
            request, need = about
            self._asked[request] = (now, need)
        ledger, began = self.ledger, time.process_time()
        match what:
            case "ask":
                ledger.request(*about, now)
            case "end":
                ledger.release(about)
            case "rest":
                ledger.rest(about, now)
            case "clear":
                for device in about:
                    ledger.cleared(device)
        decisions = ledger.schedule(now)
        spent = time.process_time() - began
        self.spent_seconds += spent
        self.slowest_seconds = max(self.slowest_seconds, spent)
        self.longest_queue = max(self.longest_queue, len(ledger.queued))
        for decision in decisions:
            match decision:
                case Granted():
                    self._begin(decision, now)
                case Evict():
                    self.evicted += 1
                    self._later(now + 1.0, "clear", decision.lease.devices)
                case Yield():
                    self.asked_back += 1

    def _begin(self, granted: Granted, now: float) -> None:
        since, need = self._asked.pop(granted.request)
        self._check(granted, need)
        kind = "gang" if need.count > 1 else need.kind
        self.waits.setdefault(kind, []).append(now - since)
        self.owner_waits.setdefault(need.owner, []).append(now - since)
        number, leases = int(granted.request), [lease.id for lease in granted.leases]
        ends = now + self._last[number]
        # a fifth of the sessions stay for a while after their cell
        if need.kind == "session" and number % 5 == 0:
            self._later(ends, "rest", leases)
            ends += 300.0
        self._later(ends, "end", leases)

    def _later(self, at: float, what: str, about: Iterable[str] | None) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (at, self._number, what, about))

    def _check(self, granted: Granted, need: Need) -> None:
        """All or nothing, and nobody has more of a device than there is of it."""
        there = self.ledger.devices
        given = [device for lease in granted.leases for device in lease.devices]
        assert len(given) == len(set(given)) == need.count
        for lease in granted.leases:
            assert len({there[device].machine for device in lease.devices}) == 1
        for device in given:
            assert need.fits(there[device])
            assert sum(lease.share for lease in self.ledger.on(device) if lease.running) <= 1 + 1e-6


def _need(luck: random.Random, owner: str) -> Need:
    kind = luck.choices(("trial", "share", "gang", "pair", "picky"), (70, 10, 10, 5, 5))[0]
    sweep: dict[str, Any] = {"kind": "trial", "what": f"sweep of {owner}"}
    if kind == "trial":
        return Need(owner, 1, **sweep)
    if kind == "share":
        return Need(owner, 1, share=luck.choice((0.25, 0.5)), **sweep)
    if kind == "gang":
        return Need(owner, luck.choice((2, 4, 8, 16)), type=luck.choice(("", "h100", "a100")))
    if kind == "pair":
        return Need(owner, 2, per=2)
    return Need(owner, 1, vram_bytes=luck.choice((16, 40, 80)) * GIB)


def measure(requests: int = REQUESTS) -> list[Row]:
    """Rows for a pool that is asked for less than it has, for as much as it has, and for more."""
    rows = []
    for load in LOADS:
        ran = Simulation(load, requests).run()
        assert sum(map(len, ran.waits.values())) == requests
        assert not ran.ledger.leases
        assert not ran.ledger.queued
        told = [f"{kind} {statistics.median(each):.0f}/{max(each):.0f} s" for kind, each in sorted(ran.waits.items())]
        owners = [statistics.mean(waits) for waits in ran.owner_waits.values()]
        unlucky = max(owners) / max(1e-9, statistics.mean(owners))
        note = (
            f"queue ≤ {ran.longest_queue}; waits (median/longest) {', '.join(told)}; the unluckiest owner waits "
            f"{unlucky:.2f} × the mean; {ran.evicted} evicted; slowest decision {1000 * ran.slowest_seconds:.1f} ms"
        )
        what = f"ledger, {DEVICES} devices, {OWNERS} owners, {requests} requests for {load:.0%} of it"
        speed = requests / ran.spent_seconds
        rows.append(figure(what, speed, "grants/s", LEAST_GRANTS_PER_SECOND, at_least=True, note=note))
    return rows


if __name__ == "__main__":
    print(markdown(measure(*map(int, sys.argv[1:]))))
