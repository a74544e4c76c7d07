"""A ledger with a clock that tests move, and devices for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kalavai_nb.ledger import Decision, Evict, Granted, Ledger, Need, Yield
from kalavai_nb.state import Device

GIB = 2**30
IDLE = 60.0


def device(number: int, machine: str = "m0", **fields: Any) -> Device:
    given = {"kind": "cuda", "name": "NVIDIA A100", "host": machine, "memory_bytes": 8 * GIB, **fields}
    return Device(id=f"d{number}", index=number, machine=machine, **given)


class Pool:
    """A ledger in which every request gets the clock of the test, and evictions are carried out when it says so."""

    def __init__(self, *devices: Device, owners: str = "abc", idle_seconds: float = IDLE) -> None:
        self.ledger = Ledger(idle_seconds)
        self.now = 0.0
        for each in devices:
            self.ledger.add_device(each)
        for owner in owners:
            self.ledger.add_owner(owner, f"{owner}.ipynb")

    def ask(self, id: str, count: int = 1, *, owner: str = "", **fields: Any) -> None:
        """Queue a request; its owner is the first letter of its id, unless told otherwise."""
        self.ledger.request(id, Need(owner or id[0], count, **fields), self.now)

    def decide(self) -> list[Decision]:
        return self.ledger.schedule(self.now)

    def grants(self) -> dict[str, list[str]]:
        """{request: devices} of what is granted now."""
        found = [decision for decision in self.decide() if isinstance(decision, Granted)]
        return {g.request: [id for lease in g.leases for id in lease.devices] for g in found}

    def evictions(self) -> list[str]:
        """The devices that are taken back now."""
        return [id for found in self.decide() if isinstance(found, Evict) for id in found.lease.devices]

    def yields(self) -> list[str]:
        """The leases that are asked back now."""
        return [found.lease.id for found in self.decide() if isinstance(found, Yield)]

    def get(self, id: str, count: int = 1, **fields: Any) -> tuple[str, ...]:
        """Ask, and be granted at once: the ids of the leases."""
        self.ask(id, count, **fields)
        [granted] = self.decide()
        assert isinstance(granted, Granted)
        assert granted.request == id
        return tuple(lease.id for lease in granted.leases)

    def get_on(self, id: str, where: str, **fields: Any) -> tuple[str, ...]:
        """The same on that device."""
        return self.get(id, avoid=tuple(other for other in self.ledger.devices if other != where), **fields)

    def rest(self, leases: Iterable[str]) -> None:
        self.ledger.rest(leases, self.now)

    def reason(self, request: str) -> str:
        [found] = [waiting.reason for waiting in self.ledger.waiting(self.now) if waiting.id == request]
        return found


def pool_of(count: int, **options: Any) -> Pool:
    return Pool(*(device(number) for number in range(count)), **options)
