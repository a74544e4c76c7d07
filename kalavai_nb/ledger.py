"""The one arbiter of a pool: who holds which devices, who waits for what. Pure: no clock, no network, no Dask.

Rules, in the order they are applied:

1. All or nothing. A request is granted every device it asks for in one step, or it waits. Two gangs cannot deadlock.
2. In order, and fairly between owners: next comes the owner that holds the fewest running devices, then the request
   that has waited longest. A request that does not fit keeps the free devices it could use for itself, so that a
   stream of small requests cannot starve a gang.
3. The owner of a lease is the notebook. Its idle session never blocks its own sweep; it does block other owners,
   until it has been idle for ``idle_seconds`` while somebody waits: then the devices that are wanted are taken back.
4. A device that was lost is expected back for ``away_seconds``: requests that need it wait, instead of failing.
5. A sweep may keep its leases from trial to trial; when anything else waits for one of its devices, it is asked to
   give that lease back after its trial, and takes its turn like everybody.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kalavai_nb.errors import NotEnoughDevices, PoolClosed
from kalavai_nb.placement import choose
from kalavai_nb.reasons import too_many, why_waiting
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


@dataclass(frozen=True)
class Yield:
    """Ask the owner of this lease to release it after the trial that runs on it. Said once for each lease."""

    lease: Lease


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
        self._asked_back: set[str] = set()
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
            raise NotEnoughDevices(too_many(need, self._expected(now)))
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
            self._asked_back.discard(lease_id)

    def clearing(self, device_id: str) -> None:
        """Grant this device to nobody until what ran on it has ended."""
        if device_id in self.devices:
            self._clearing.add(device_id)

    def cleared(self, device_id: str) -> None:
        """What ran on this device has ended."""
        self._clearing.discard(device_id)

    # deciding

    def schedule(self, now: float) -> list[Granted | Refused | Evict | Yield]:
        """Grant what can be granted, and name the idle sessions that must make room. Idempotent."""
        decisions: list[Granted | Refused | Evict | Yield] = []
        for request in [request for request in self._queue if not self._possible(request.need, now)]:
            self._queue.remove(request)
            reason = too_many(request.need, self._expected(now))
            decisions.append(Refused(request.id, request.need.owner, reason))
        # a grant changes whose turn it is, so the order is made anew after each
        while granted := self._grant_next(now):
            decisions.append(granted)
        reserved: set[str] = set()
        for request in self._in_order():
            decisions += self._make_room(request.need, reserved, now)
            decisions += self._ask_back(request.need)
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
                what=need.what,
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
        """The devices to grant; fewer than ``count`` where it cannot be."""
        pinned = [id for wake in need.wakes if wake in self.leases for id in self.leases[wake].devices]
        used: dict[str, float] = {}
        for lease in self.leases.values():
            for id in lease.devices if lease.running else ():
                used[id] = used.get(id, 0.0) + lease.share
        return choose(need, usable, pinned, used)

    def _ask_back(self, need: Need) -> list[Yield]:
        """The leases of sweeps that stand in the way, each asked for once; its own only for another share."""
        wanted = {
            lease.id: lease
            for device in self.devices.values()
            if need.fits(device)
            for lease in self._blockers(device.id, need)
            if lease.kind == "trial" and (lease.owner, lease.what, lease.share) != (need.owner, need.what, need.share)
        }
        new = [lease for lease in wanted.values() if lease.id not in self._asked_back]
        self._asked_back |= {lease.id for lease in new}
        return [Yield(lease) for lease in new]

    def _expected_back(self, now: float) -> list[Device]:
        self._away = {id: (d, since) for id, (d, since) in self._away.items() if now - since < AWAY_SECONDS}
        return [device for device, _ in self._away.values()]

    def _expected(self, now: float) -> list[Device]:
        return [*self.devices.values(), *self._expected_back(now)]

    def _possible(self, need: Need, now: float) -> bool:
        """Whether the pool could grant this, were nobody else there and all devices back."""
        fitting = [device for device in self._expected(now) if need.fits(device)]
        return len(self._choose(need, fitting)) == need.count

    def _explain(self, position: int, request: _Request, now: float) -> Waiting:
        need = request.need
        fitting = [device for device in self.devices.values() if need.fits(device)]
        reason = why_waiting(
            position + 1,
            need,
            free=len(self._usable(need)),
            holders={str(device): self._blockers(device.id, need) for device in fitting},
            closing=[str(device) for device in fitting if device.id in self._clearing],
            away=[str(device) for device in self._expected_back(now) if need.fits(device)],
            idle_seconds=self.idle_seconds,
            now=now,
        )
        return Waiting(request.id, need.owner, self.owners.get(need.owner, ""), need.count, request.since, reason)
