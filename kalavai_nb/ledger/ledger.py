"""Deciding: the state of all leases of one pool, what changes it, and what follows."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import replace

from kalavai_nb.errors import NotEnoughDevices, OptionError, PoolClosed
from kalavai_nb.ledger.chances import Chances
from kalavai_nb.ledger.decisions import Decision, Drained, Evict, Granted, Refused, Yield
from kalavai_nb.ledger.devices import Devices
from kalavai_nb.ledger.holdings import CLEARING, GIVES_BACK, HELD, LEAVING, Holdings
from kalavai_nb.ledger.line import Line, Request
from kalavai_nb.ledger.reach import Reach
from kalavai_nb.ledger.room import Room
from kalavai_nb.ledger.turns import Turns
from kalavai_nb.ledger.waiting import Leaving, Words
from kalavai_nb.state import Device, Lease, Need, Waiting

AWAY_SECONDS = 30.0


class Ledger:
    """The one arbiter. Methods that free or add devices are followed by ``schedule``.

    A device that was lost is expected back for ``away_seconds``; until ``young_until``, so are those of which nothing
    is known yet: the head was started again, and its machines are on their way.
    """

    def __init__(self, idle_seconds: float = 60, away_seconds: float = AWAY_SECONDS, young_until: float = 0) -> None:
        self.idle_seconds, self._away_seconds, self._young_until = idle_seconds, away_seconds, young_until
        self.owners: dict[str, str] = {}
        self._all = Devices()
        self._holdings = Holdings(self._all)
        self._line = Line()
        self._reach = Reach()
        self._chances = Chances(self._all, self._holdings, self._reach)
        self._turns = Turns(self._holdings, self._line, self._chances)
        self._room = Room(self._all, self._holdings, self._line, self._chances)
        self._words = Words(self._all, self._holdings, self._chances, self._reach)
        self._leaving: dict[str, Leaving] = {}
        self._drained: set[str] = set()
        # leases that were asked for since their device is leaving
        self._moving: set[str] = set()
        self._ids = itertools.count(1)
        self._has_shrunk = False
        self._of_version = (-1, -1)

    @property
    def devices(self) -> dict[str, Device]:
        """The devices that are there."""
        return self._all.here

    @property
    def leases(self) -> dict[str, Lease]:
        return self._holdings.leases

    # who and what is there

    def add_device(self, device: Device) -> None:
        """This device is there, perhaps again, or it is there as before and is like this from now on."""
        known = self.devices.get(device.id)
        self._all.add(device)
        self._has_shrunk = True
        self._chances.forget()
        if known is None or known.worker != device.worker:
            self.stay(device.id)
        self._holdings.settle(device.id)

    def remove_device(self, device_id: str, now: float) -> list[Lease]:
        """The device is lost, or it has left, and with it every lease that holds it. Returns those leases."""
        if device_id not in self._all.here:
            return []
        gone, left = self._holdings.on(device_id), self._leaving.get(device_id)
        self._all.lose(device_id, now, left.why if left else "")
        self.stay(device_id)
        self.cleared(device_id)
        self.release([lease.id for lease in gone])
        self._has_shrunk = True
        self._chances.forget()
        return gone

    def leave(self, device_id: str, why: str, until: float) -> None:
        """Who lends this device takes it back, at that time at the latest: grant it to nobody, empty it."""
        if device_id in self._all.here:
            self._leaving[device_id] = Leaving(why, until)
            self._holdings.mark(LEAVING, device_id, True)
            self._chances.forget()

    def stay(self, device_id: str) -> None:
        """It is not leaving any more."""
        self._drained.discard(device_id)
        self._moving -= {lease.id for lease in self._holdings.on(device_id)}
        self._leaving.pop(device_id, None)
        self._chances.forget()
        self._holdings.mark(LEAVING, device_id, False)

    def on(self, device_id: str) -> list[Lease]:
        """The leases that hold this device."""
        return self._holdings.on(device_id)

    def leaving(self, now: float) -> dict[str, str]:
        """Why each device is leaving that is, and when."""
        return {id: leaving.sentence(now) for id, leaving in self._leaving.items()}

    def why_leaving(self, device_id: str) -> str:
        """Why this device is leaving; empty where it is not."""
        return self._leaving[device_id].why if device_id in self._leaving else ""

    def set_links(self, a: str, b: str, mutual: bool) -> None:
        """These machines reach each other, both ways, or they do not. What is not said is not measured yet."""
        self._reach.set(a, b, mutual)
        self._has_shrunk |= not mutual

    def add_owner(self, owner: str, label: str) -> None:
        self.owners[owner] = label

    def remove_owner(self, owner: str) -> list[Lease]:
        """The owner is gone: its requests and leases end. Returns the leases as they were."""
        self.owners.pop(owner, None)
        for request in self._line.of(owner):
            self._line.drop(request.id)
        mine = [lease for lease in self.leases.values() if lease.owner == owner]
        self.release(lease.id for lease in mine)
        return mine

    # asking and giving back

    def request(self, request_id: str, need: Need, now: float) -> None:
        """Queue a request under an id of its owner's choice; what was queued under it waits no more.

        Raises NotEnoughDevices where the pool, with the devices it expects back, could never grant it, and PoolClosed
        for an owner that the pool does not know.
        """
        if need.owner not in self.owners:
            raise PoolClosed("this notebook is not connected to the pool; open it again with kn.Pool(…)")
        if need.count < 1 or need.per < 1 or not 0 < need.share <= 1:
            raise OptionError(f"asked for {need}, in groups of {need.per}: wanted 1 or more, and some of each.")
        self._refresh(now)
        request = Request(request_id, need, now, next(self._ids), self._all.fitting(need))
        if not self._is_young(now) and not self._chances.is_possible(request):
            raise NotEnoughDevices(self._words.refusal(need, self.leaving(now)))
        self._line.drop(request_id)
        self._line.put(request)
        self._turns.come(request)
        self._room.add(request)

    def cancel(self, request_id: str) -> None:
        self._line.drop(request_id)
        self._turns.forget()

    def rest(self, lease_ids: Iterable[str], now: float) -> None:
        """The cell has ended; the session keeps its devices, idle."""
        for lease_id in lease_ids:
            if lease := self.leases.get(lease_id):
                self._put(replace(lease, running=False, since=now))

    def release(self, lease_ids: Iterable[str]) -> None:
        for lease_id in lease_ids:
            self._moving.discard(lease_id)
            if (lease := self._holdings.drop(lease_id)) and lease.running:
                self._line.count(lease.owner, -len(lease.devices))

    def recast(self, lease_ids: Iterable[str], kind: str) -> None:
        """These leases are for something else from now on, such as a spare that has taken a place."""
        for lease_id in lease_ids:
            if lease := self.leases.get(lease_id):
                self._put(replace(lease, kind=kind))

    def clearing(self, device_id: str) -> None:
        """Grant this device to nobody until what ran on it has ended."""
        if device_id in self.devices:
            self._holdings.mark(CLEARING, device_id, True)

    def cleared(self, device_id: str) -> None:
        """What ran on this device has ended."""
        self._holdings.mark(CLEARING, device_id, False)

    # deciding

    def schedule(self, now: float) -> list[Decision]:
        """Grant what can be granted, and name the idle sessions that must make room. Idempotent."""
        self._refresh(now)
        decisions: list[Decision] = [*self._refuse(now), *self._empty_leaving()]
        if self._turns.begin():
            # a grant changes whose turn it is, so the order is made anew after each
            while self._line.requests and (found := self._turns.next()):
                decisions.append(self._grant(*found, now))
            decisions += [Evict(lease, self.owners.get(owner, "")) for lease, owner in self._room.take_back()]
        decisions += map(Yield, self._room.ask_back())
        self._turns.done()
        return decisions

    @property
    def queued(self) -> Collection[str]:
        """The ids of the requests that wait."""
        return self._line.requests.keys()

    def waiting(self, now: float, most: int | None = None) -> list[Waiting]:
        """The queue in the order it will be served, ``most`` at most, each with its reason in words."""
        self._refresh(now)
        requests = enumerate(itertools.islice(self._line.walk(), most))
        return [self._explain(place, request, now) for place, request in requests]

    def why(self, request_id: str, now: float) -> Waiting | None:
        """The same for one request; None where it does not wait."""
        self._refresh(now)
        if request_id not in self._line.requests:
            return None
        place, request = next(each for each in enumerate(self._line.walk()) if each[1].id == request_id)
        return self._explain(place, request, now)

    def next_look_seconds(self, now: float) -> float | None:
        """When ``schedule`` is worth calling again though nothing happened; None where only an event can help."""
        if not self._line.requests:
            return None
        self._holdings.ripen(now, self.idle_seconds)
        ahead = [away.since + self._away_seconds - now for away in self._all.away.values()]
        ahead.append(self._young_until - now)
        if lease := self._holdings.first_unripe():
            ahead.append(lease.since + self.idle_seconds - now)
        return max(0.01, min(ahead)) if (ahead := [seconds for seconds in ahead if seconds > 0]) else None

    # inside

    def _is_young(self, now: float) -> bool:
        """Whether devices may still come that nobody has heard of; afterwards all that wait are looked at."""
        self._has_shrunk |= now < self._young_until
        return now < self._young_until

    def _explain(self, place: int, request: Request, now: float) -> Waiting:
        need = request.need
        reason = self._words.reason(place + 1, request, self.leaving(now), self.idle_seconds, now)
        return Waiting(request.id, need.owner, self.owners.get(need.owner, ""), need.count, request.since, reason)

    def _refresh(self, now: float) -> None:
        """Take note of what time has done, and of devices that have come or gone."""
        for device in self._all.give_up(now, self._away_seconds):
            self._has_shrunk = True
            if all(other.machine != device.machine for other in self._all.expected):
                self._reach.forget(device.machine)
        version = (self._all.refresh(), self._reach.version)
        if version != self._of_version:
            self._chances.forget()
            self._turns.forget()
            if version[0] != self._of_version[0]:
                self._holdings.refresh()
                self._line.refit(self._all.fitting)
            self._of_version = version
        self._holdings.ripen(now, self.idle_seconds)

    def _refuse(self, now: float) -> list[Refused]:
        if not self._has_shrunk or self._is_young(now):
            return []
        self._has_shrunk = False
        self._turns.forget()
        refused = []
        for request in [each for each in self._line.requests.values() if not self._chances.is_possible(each)]:
            self._line.drop(request.id)
            reason = self._words.refusal(request.need, self.leaving(now))
            refused.append(Refused(request.id, request.need.owner, reason))
        return refused

    def _empty_leaving(self) -> list[Decision]:
        """Take idle sessions back from devices that are leaving, and ask for what can move."""
        decisions: list[Decision] = []
        for id in self._leaving:
            for lease in self._holdings.on(id):
                if not lease.running:
                    self._room.end(lease)
                    decisions.append(Evict(lease, f"the owner of {self.devices[id].host}"))
                elif lease.kind in GIVES_BACK and lease.id not in self._moving:
                    self._moving.add(lease.id)
                    self._holdings.ask_back(lease)
                    decisions.append(Yield(lease, is_leaving=True))
            bit, busy = self._all.bit(id), self._holdings.set_of(HELD) | self._holdings.set_of(CLEARING)
            if not bit & busy and id not in self._drained:
                self._drained.add(id)
                decisions.append(Drained(id))
        return decisions

    def _grant(self, request: Request, chosen: list[int], now: float) -> Granted:
        need = request.need
        self._line.drop(request.id)
        devices = [device.id for bit in chosen for device in self._all.each(bit)]
        woken = [replace(self.leases[id], running=True, since=now) for id in need.wakes if id in self.leases]
        taken = sum(len(lease.devices) for lease in woken)
        fresh = [
            Lease(
                id=f"lease-{next(self._ids)}",
                owner=need.owner,
                label=self.owners[need.owner],
                kind=need.kind,
                devices=tuple(devices[start : start + need.per]),
                share=need.share,
                running=True,
                since=now,
                what=need.what,
            )
            for start in range(taken, need.count, need.per)
        ]
        leases = (*woken, *fresh)
        for lease in leases:
            self._put(lease)
        return Granted(request.id, need.owner, leases)

    def _put(self, lease: Lease) -> None:
        before = self.leases.get(lease.id)
        self._holdings.put(lease)
        was_running = before is not None and before.running
        self._line.count(lease.owner, (lease.running - was_running) * len(lease.devices))
