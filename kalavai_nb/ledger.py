"""The one arbiter of a pool: who holds which devices, who waits for what. Pure: no clock, no network, no Dask.

Rules, in the order they are applied:

1. All or nothing. A request is granted every device it asks for in one step, or it waits. Two gangs cannot deadlock.
2. In order, and fairly between owners: next comes the owner that holds the fewest running devices, then the request
   that has waited longest. A request that does not fit keeps the free devices it could use for itself, so that a
   stream of small requests cannot starve a gang.
3. The owner of a lease is the notebook. Its idle session never blocks its own sweep; it does block other owners,
   until it has been idle for ``idle_seconds`` while somebody waits: then the devices that are wanted are taken back.
4. A device that was lost is expected back for ``away_seconds``: requests that need it wait, instead of failing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kalavai_nb.errors import NotEnoughDevices, PoolClosed
from kalavai_nb.state import Device, Lease, Need, Waiting

AWAY_SECONDS = 30.0


@dataclass(frozen=True)
class Granted:
    """The leases of a request, in the order of its ranks: those that it wakes, then the new ones."""

    request: str
    owner: str
    leases: tuple[Lease, ...]


@dataclass(frozen=True)
class Refused:
    """A request that was queued, and that the pool can never grant any more."""

    request: str
    owner: str
    reason: str


@dataclass(frozen=True)
class Evict:
    """Take this lease back from an idle session: end its rank, then call ``Ledger.cleared`` for its devices."""

    lease: Lease
    wanted_by: str


@dataclass
class _Request:
    id: str
    need: Need
    since: float
    number: int


class Ledger:
    """The state of all leases of one pool. Methods that free or add devices are followed by ``schedule``."""

    def __init__(self, idle_seconds: float = 60.0) -> None:
        self.idle_seconds = idle_seconds
        self.devices: dict[str, Device] = {}
        self.owners: dict[str, str] = {}
        self.leases: dict[str, Lease] = {}
        self._away: dict[str, tuple[Device, float]] = {}
        self._queue: list[_Request] = []
        self._clearing: set[str] = set()
        self._ids = itertools.count(1)

    # who and what is there

    def add_device(self, device: Device) -> None:
        self._away.pop(device.id, None)
        self.devices[device.id] = device

    def remove_device(self, device_id: str, now: float) -> list[Lease]:
        """The device is lost, and with it every lease that holds it. Returns those leases."""
        device = self.devices.pop(device_id, None)
        if device is None:
            return []
        self._away[device_id] = (device, now)
        self._clearing.discard(device_id)
        gone = [lease for lease in self.leases.values() if device_id in lease.devices]
        self.release([lease.id for lease in gone])
        return gone

    def add_owner(self, owner: str, label: str) -> None:
        self.owners[owner] = label

    def remove_owner(self, owner: str) -> list[Lease]:
        """The owner is gone: its requests and leases end. Returns the leases as they were."""
        self.owners.pop(owner, None)
        self._queue = [request for request in self._queue if request.need.owner != owner]
        return [self.leases.pop(lease.id) for lease in list(self.leases.values()) if lease.owner == owner]

    # asking and giving back

    def request(self, request_id: str, need: Need, now: float) -> None:
        """Queue a request under an id of its owner's choice.

        Raises NotEnoughDevices where the pool, with the devices it expects back, could never grant it, and PoolClosed
        for an owner that the pool does not know.
        """
        if need.owner not in self.owners:
            raise PoolClosed("this notebook is not connected to the pool; open it again with kn.Pool(…)")
        if not self._possible(need, now):
            raise NotEnoughDevices(self._too_many(need, now))
        self._queue.append(_Request(request_id, need, now, next(self._ids)))

    def cancel(self, request_id: str) -> None:
        self._queue = [request for request in self._queue if request.id != request_id]

    def rest(self, lease_ids: Iterable[str], now: float) -> None:
        """The cell has ended; the session keeps its devices, idle."""
        for lease_id in lease_ids:
            if lease := self.leases.get(lease_id):
                self.leases[lease_id] = replace(lease, running=False, since=now)

    def release(self, lease_ids: Iterable[str]) -> None:
        for lease_id in lease_ids:
            self.leases.pop(lease_id, None)

    def clearing(self, device_id: str) -> None:
        """Grant this device to nobody until what ran on it has ended."""
        if device_id in self.devices:
            self._clearing.add(device_id)

    def cleared(self, device_id: str) -> None:
        """What ran on this device has ended."""
        self._clearing.discard(device_id)

    # deciding

    def schedule(self, now: float) -> list[Granted | Refused | Evict]:
        """Grant what can be granted, and name the idle sessions that must make room. Idempotent."""
        decisions: list[Granted | Refused | Evict] = []
        for request in [request for request in self._queue if not self._possible(request.need, now)]:
            self._queue.remove(request)
            decisions.append(Refused(request.id, request.need.owner, self._too_many(request.need, now)))
        # a grant changes whose turn it is, so the order is made anew after each
        while granted := self._grant_next(now):
            decisions.append(granted)
        reserved: set[str] = set()
        for request in self._in_order():
            decisions += self._make_room(request.need, reserved, now)
            reserved |= self._held_back(request.need, now)
        return decisions

    def waiting(self, now: float) -> list[Waiting]:
        """The queue in the order it will be served, each with its reason in words."""
        return [self._explain(position, request, now) for position, request in enumerate(self._in_order())]

    def next_look_seconds(self, now: float) -> float | None:
        """When ``schedule`` is worth calling again though nothing happened; None where only an event can help."""
        if not self._queue:
            return None
        ripe = [lease.since + self.idle_seconds - now for lease in self.leases.values() if not lease.running]
        given_up = [since + AWAY_SECONDS - now for _, since in self._away.values()]
        ahead = [seconds for seconds in ripe + given_up if seconds > 0]
        return max(0.01, min(ahead)) if ahead else None

    # inside

    def _grant_next(self, now: float) -> Granted | None:
        """Grant the first request of the queue that fits; each before it keeps for itself what it could use."""
        reserved: set[str] = set()
        for request in self._in_order():
            chosen = self._choose(request.need, [d for d in self._usable(request.need) if d.id not in reserved])
            if len(chosen) == request.need.count:
                return self._grant(request, chosen, now)
            reserved |= self._held_back(request.need, now)
        return None

    def _held_back(self, need: Need, now: float) -> set[str]:
        """The devices that a waiting request keeps from those behind it: on which nothing runs, or only shares."""
        return {
            device.id
            for device in self.devices.values()
            if need.fits(device)
            and all(b.share < 1.0 if b.running else self._ripe(b, now) for b in self._blockers(device.id, need))
        }

    def _ripe(self, lease: Lease, now: float) -> bool:
        return not lease.running and now - lease.since >= self.idle_seconds

    def _in_order(self) -> list[_Request]:
        running: dict[str, int] = {}
        for lease in self.leases.values():
            if lease.running:
                running[lease.owner] = running.get(lease.owner, 0) + len(lease.devices)
        return sorted(self._queue, key=lambda r: (running.get(r.need.owner, 0), r.number))

    def _blockers(self, device_id: str, need: Need) -> list[Lease]:
        """The leases that keep this device from this request."""
        here = [lease for lease in self.leases.values() if device_id in lease.devices and lease.id not in need.wakes]
        running = [lease for lease in here if lease.running]
        foreign = [lease for lease in here if not lease.running and lease.owner != need.owner]
        full = sum(lease.share for lease in running) + need.share > 1.0 + 1e-9
        return (running if full else []) + foreign

    def _usable(self, need: Need) -> list[Device]:
        return [
            device
            for device in self.devices.values()
            if need.fits(device) and device.id not in self._clearing and not self._blockers(device.id, need)
        ]

    def _grant(self, request: _Request, chosen: list[Device], now: float) -> Granted:
        need = request.need
        self._queue.remove(request)
        woken = [replace(self.leases[id], running=True, since=now) for id in need.wakes if id in self.leases]
        taken = sum(len(lease.devices) for lease in woken)
        fresh = [
            Lease(
                id=f"lease-{next(self._ids)}",
                owner=need.owner,
                label=self.owners[need.owner],
                kind=need.kind,
                devices=tuple(device.id for device in chosen[start : start + need.per]),
                share=need.share,
                running=True,
                since=now,
            )
            for start in range(taken, need.count, need.per)
        ]
        leases = (*woken, *fresh)
        self.leases.update({lease.id: lease for lease in leases})
        return Granted(request.id, need.owner, leases)

    def _make_room(self, need: Need, reserved: set[str], now: float) -> list[Evict]:
        """Evictions from idle sessions of others, longest idle first, if they make the request fit."""
        usable = [d for d in self._usable(need) if d.id not in reserved]
        ripe: list[tuple[float, Device]] = []
        for device in self.devices.values():
            blockers = self._blockers(device.id, need)
            free_but_for_them = need.fits(device) and device.id not in reserved | self._clearing
            if blockers and free_but_for_them and all(self._ripe(lease, now) for lease in blockers):
                ripe.append((min(lease.since for lease in blockers), device))
        clearing = [d for d in self.devices.values() if d.id in self._clearing - reserved and need.fits(d)]
        in_order = [device for _, device in sorted(ripe, key=lambda entry: entry[0])]
        for more in range(len(in_order) + 1):
            chosen = self._choose(need, [*usable, *clearing, *in_order[:more]])
            if len(chosen) == need.count:
                break
        else:
            return []
        reserved |= {device.id for device in chosen}
        # a lease goes as a whole, with every device it holds
        leases = {b.id: b for device in in_order if device in chosen for b in self._blockers(device.id, need)}
        for lease in leases.values():
            self._clearing |= set(lease.devices)
            self.release([lease.id])
        return [Evict(lease, self.owners.get(need.owner, "")) for lease in leases.values()]

    def _choose(self, need: Need, usable: list[Device]) -> list[Device]:
        """The devices to grant: those of woken leases, then others with machines kept together.

        Fewer than ``count`` where it cannot be.
        """
        by_id = {device.id: device for device in usable}
        pinned = [id for wake in need.wakes if wake in self.leases for id in self.leases[wake].devices]
        if any(id not in by_id for id in pinned):
            return []
        chosen = [by_id[id] for id in pinned][: need.count]
        machines: dict[str, list[Device]] = {}
        for device in usable:
            if device.id not in pinned:
                machines.setdefault(device.machine, []).append(device)
        # the fullest machines first, so that a gang spans as few as it can
        for devices in sorted(machines.values(), key=len, reverse=True):
            devices.sort(key=lambda device: device.index)
            whole_groups = len(devices) // need.per * need.per
            chosen += devices[: min(whole_groups, need.count - len(chosen))]
        return chosen

    def _expected_back(self, now: float) -> list[Device]:
        self._away = {id: (d, since) for id, (d, since) in self._away.items() if now - since < AWAY_SECONDS}
        return [device for device, _ in self._away.values()]

    def _possible(self, need: Need, now: float) -> bool:
        """Whether the pool could grant this, were nobody else there and all devices back."""
        expected = [*self.devices.values(), *self._expected_back(now)]
        return len(self._choose(need, [device for device in expected if need.fits(device)])) == need.count

    def _too_many(self, need: Need, now: float) -> str:
        expected = [*self.devices.values(), *self._expected_back(now)]
        there = ", ".join(sorted(map(str, expected))) or "none"
        fitting = sum(map(need.fits, expected))
        what = f"asked for {need}"
        if need.per > 1:
            what += f" in groups of {need.per} on one machine"
        if not fitting and expected:
            types = ", ".join(sorted({f"{d.name} ({d.memory_bytes / 2**30:.0f} GB) on {d.host}" for d in expected}))
            return f"{what}, but no device of the pool is like that. There is: {types}. Ask for less, or leave it out."
        advice = f"Try gpus={fitting}" if fitting and need.per == 1 else "Ask for fewer"
        return f"{what}, but the pool has {len(expected)}: {there}. {advice}, or add a machine to the pool."

    def _explain(self, position: int, request: _Request, now: float) -> Waiting:
        need = request.need
        fitting = [device for device in self.devices.values() if need.fits(device)]
        free = self._usable(need)
        parts = [f"{_ordinal(position + 1)} in the queue", f"{len(free)} of the {need.count} devices it needs are free"]
        holders: dict[str, list[str]] = {}
        for device in fitting:
            for lease in self._blockers(device.id, need):
                idle = (
                    "" if lease.running else f" (idle {now - lease.since:.0f} s, released at {self.idle_seconds:.0f} s)"
                )
                holders.setdefault(f"{lease.label}{idle}", []).append(str(device))
            if device.id in self._clearing:
                holders.setdefault("a session that is being closed", []).append(str(device))
        parts += [f"{label} holds {', '.join(devices)}" for label, devices in holders.items()]
        parts += [f"{device} was lost and is expected back" for device in self._expected_back(now) if need.fits(device)]
        return Waiting(
            request.id, need.owner, self.owners.get(need.owner, ""), need.count, request.since, "; ".join(parts)
        )


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{suffix}"
