"""Which leases hold which devices, and so which devices are free for whom. Kept up with every change of a lease."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TypeVar

from kalavai_nb.ledger.devices import Devices
from kalavai_nb.placement import Liking
from kalavai_nb.state import Lease, Need

# leases that their owner gives back when somebody else waits: a sweep's after its trial, spares of a model at once
GIVES_BACK = ("trial", "spare")

# sets of devices that there always are: here; with a running lease of the whole device; with any lease; with an idle
# one; with one that is not ripe, or is; with one that may be asked back; of which what ran there is being ended;
# leaving
HERE, WHOLE, HELD, IDLE, UNRIPE, RIPE = "here", "whole", "held", "idle", "unripe", "ripe"
ASKS, CLEARING, LEAVING = "asks", "clearing", "leaving"

MARKS = (HERE, WHOLE, HELD, IDLE, UNRIPE, RIPE, ASKS, CLEARING, LEAVING)

# in the place of how much of a device is in use, where it is not here
GONE = -1.0
# a mark, and which part of its set, if not all of it
_Key = tuple[str, object]
_Part = TypeVar("_Part")


class Holdings:
    """All leases, and sets of devices by what is true of them.

    A lease is ripe when it has been idle for so long that it is taken back for others.
    """

    def __init__(self, devices: Devices) -> None:
        self.leases: dict[str, Lease] = {}
        # devices, and owners to whose idle sessions something has happened, since somebody looked
        self.changed: set[str] = set()
        self.touched: set[str] = set()
        # how often a set has changed
        self.turn = 0
        self._devices = devices
        self._version = -1
        self._on: dict[str, dict[str, Lease]] = {}
        self._marks: dict[str, set[str]] = {CLEARING: set(), LEAVING: set()}
        self._ripe: set[str] = set()
        self._idle: list[tuple[float, str]] = []
        self._asked: set[str] = set()
        # of each mark the set, and its parts, such as of each owner
        self._sets: dict[str, dict[object, int]] = {mark: {} for mark in MARKS}
        self._used: dict[float, int] = {}
        self._states: dict[str, tuple[float, frozenset[_Key]]] = {}

    # what changes

    def put(self, lease: Lease) -> None:
        """This lease is there, or is like this from now on."""
        self.leases[lease.id] = lease
        self._ripe.discard(lease.id)
        if not lease.running:
            heapq.heappush(self._idle, (lease.since, lease.id))
        for id in lease.devices:
            self._on.setdefault(id, {})[lease.id] = lease
            self.settle(id)

    def drop(self, lease_id: str) -> Lease | None:
        """This lease is no more. Returns it as it was."""
        lease = self.leases.pop(lease_id, None)
        if lease is not None:
            self._ripe.discard(lease_id)
            self._asked.discard(lease_id)
            for id in lease.devices:
                self._on[id].pop(lease_id, None)
                if not self._on[id]:
                    del self._on[id]
                self.settle(id)
        return lease

    def mark(self, mark: str, device_id: str, is_so: bool) -> None:
        """The device is being cleared, or leaving, or it is not any more."""
        (self._marks[mark].add if is_so else self._marks[mark].discard)(device_id)
        self.settle(device_id)

    def ask_back(self, lease: Lease) -> None:
        """Its owner has been asked to give this lease back."""
        self._asked.add(lease.id)
        for id in lease.devices:
            self.settle(id)

    def ripen(self, now: float, idle_seconds: float) -> None:
        """Note which idle leases have become ripe."""
        while self._idle:
            since, id = self._idle[0]
            lease = self.leases.get(id)
            if lease is not None and not lease.running and lease.since == since:
                if now - since < idle_seconds:
                    return
                self._ripe.add(id)
                for device in lease.devices:
                    self.settle(device)
            heapq.heappop(self._idle)

    def settle(self, device_id: str) -> None:
        """Put the device into the sets in which it belongs now."""
        self.changed.add(device_id)
        bit = self._devices.bit(device_id)
        # where it has no bit yet, all sets will be made anew
        if self._version != self._devices.version or not bit:
            return
        before, after = self._states.get(device_id, (GONE, frozenset())), self._state(device_id)
        if before == after:
            return
        self.turn += 1
        self._states[device_id] = after
        self.touched |= {str(part) for mark, part in before[1] | after[1] if mark == UNRIPE and part is not None}
        for mark, part in before[1] - after[1]:
            _take(self._sets[mark], part, bit)
        for mark, part in after[1] - before[1]:
            _give(self._sets[mark], part, bit)
        if before[0] != after[0]:
            _take(self._used, before[0], bit)
            if after[0] != GONE:
                _give(self._used, after[0], bit)

    def refresh(self) -> None:
        """Make all sets anew where bits have changed."""
        if self._version != self._devices.version:
            self._version = self._devices.version
            self.turn += 1
            self._sets = {mark: {} for mark in MARKS}
            self._used.clear()
            self._states.clear()
            changed = set(self.changed)
            for id in self._devices.here:
                self.settle(id)
            self.changed = changed

    # what there is

    def on(self, device_id: str) -> list[Lease]:
        """The leases that hold this device."""
        return list(self._on.get(device_id, {}).values())

    def set_of(self, mark: str, part: object = None) -> int:
        """The devices of which this is true."""
        return self._sets[mark].get(part, 0)

    def parts_of(self, mark: str) -> Mapping[object, int]:
        """The set by owner; where there is a device of several owners, it is in no part."""
        return self._sets[mark]

    def is_ripe(self, lease: Lease) -> bool:
        return lease.id in self._ripe

    def may_ask(self, lease: Lease) -> bool:
        """Whether its owner would give this lease back, and has not been asked to."""
        return lease.kind in GIVES_BACK and lease.id not in self._asked

    def first_unripe(self) -> Lease | None:
        """The idle lease that is the next to be ripe. To be called when those that are ripe are noted."""
        while self._idle:
            since, id = self._idle[0]
            lease = self.leases.get(id)
            if lease is not None and not lease.running and lease.since == since:
                return lease
            heapq.heappop(self._idle)
        return None

    def asked_of(self, need: Need) -> int:
        """The devices with leases that may be asked back for this need, as far as those have not been asked yet."""
        found, own = 0, (need.owner, need.what, need.share)
        for group, devices in self._sets[ASKS].items():
            if group is not None and group != own:
                found |= devices
        return found

    def blockers(self, device_id: str, need: Need) -> list[Lease]:
        """The leases that keep this device from this request."""
        here = [lease for lease in self._on.get(device_id, {}).values() if lease.id not in need.wakes]
        running = [lease for lease in here if lease.running]
        foreign = [lease for lease in here if not lease.running and lease.owner != need.owner]
        full = sum(lease.share for lease in running) + need.share > 1.0 + 1e-9
        return (running if full else []) + foreign

    def usable(self, need: Need, fits: int) -> int:
        """Those of these devices that can be granted now."""
        idle, sets = self._sets[IDLE], self._sets
        free = fits & self.with_room(need.share) & ~(idle.get(None, 0) & ~idle.get(need.owner, 0))
        for id in self._woken(need) if need.wakes else ():
            bit = self._devices.bit(id)
            free = free & ~bit if self.blockers(id, need) else free | bit & fits & self.set_of(HERE)
        return free & ~(sets[CLEARING].get(None, 0) | sets[LEAVING].get(None, 0))

    def kept(self, need: Need, fits: int) -> int:
        """Those of them that a waiting request keeps from those behind it: on which nothing runs, or only shares."""
        unripe, sets = self._sets[UNRIPE], self._sets
        foreign = unripe.get(None, 0) & ~unripe.get(need.owner, 0)
        kept = fits & sets[HERE].get(None, 0) & ~(sets[WHOLE].get(None, 0) | foreign)
        for id in self._woken(need) if need.wakes else ():
            bit, blockers = self._devices.bit(id), self.blockers(id, need)
            does = all(lease.share < 1.0 if lease.running else self.is_ripe(lease) for lease in blockers)
            kept = kept | bit & fits & self.set_of(HERE) if does else kept & ~bit
        return kept & ~sets[LEAVING].get(None, 0)

    def for_taking(self, need: Need, fits: int) -> int:
        """Those of them that can be granted once idle sessions of others are ended whose time is over."""
        own, unripe = self.set_of(IDLE, need.owner), self.set_of(UNRIPE) & ~self.set_of(UNRIPE, need.owner)
        ripe = fits & self.with_room(need.share) & self.set_of(IDLE) & ~own & ~unripe
        for id in self._woken(need):
            bit, blockers = self._devices.bit(id), self.blockers(id, need)
            is_ripe = blockers and all(self.is_ripe(lease) for lease in blockers)
            ripe = ripe | bit & fits & self.set_of(HERE) if is_ripe else ripe & ~bit
        return ripe & ~self.set_of(CLEARING) & ~self.set_of(LEAVING)

    def with_room(self, share: float) -> int:
        """The devices of which so much is not in use."""
        if share >= 1.0:
            return self._used.get(0.0, 0)
        found = 0
        for used, devices in self._used.items():
            if used + share <= 1.0 + 1e-9:
                found |= devices
        return found

    def liking(self, need: Need) -> Liking:
        """Which devices this request would rather have."""
        levels = [self._used[used] for used in sorted(self._used)]
        return Liking(levels, [bit for id in need.prefer if (bit := self._devices.bit(id))])

    def pinned(self, need: Need) -> list[int]:
        """The devices of the leases that this request wakes, in their order."""
        return [self._devices.bit(id) for id in self._woken(need)]

    # inside

    def _woken(self, need: Need) -> list[str]:
        return [id for wake in need.wakes if wake in self.leases for id in self.leases[wake].devices]

    def _state(self, device_id: str) -> tuple[float, frozenset[_Key]]:
        if device_id not in self._devices.here:
            return GONE, frozenset()
        leases = self._on.get(device_id, {}).values()
        keys: set[_Key] = {(HERE, None), *((mark, None) for mark, marked in self._marks.items() if device_id in marked)}
        if not leases:
            return 0.0, frozenset(keys)
        keys.add((HELD, None))
        used = 0.0
        for lease in leases:
            if lease.running:
                used += lease.share
                if lease.share >= 1.0:
                    keys.add((WHOLE, None))
            if self.may_ask(lease):
                keys |= {(ASKS, None), (ASKS, (lease.owner, lease.what, lease.share))}
        idle = [lease for lease in leases if not lease.running]
        keys |= _by_owner(IDLE, {lease.owner for lease in idle})
        if any(lease.id in self._ripe for lease in idle):
            keys.add((RIPE, None))
        keys |= _by_owner(UNRIPE, {lease.owner for lease in idle if lease.id not in self._ripe})
        return round(used, 9), frozenset(keys)


def _give(sets: dict[_Part, int], part: _Part, bit: int) -> None:
    sets[part] = sets.get(part, 0) | bit


def _take(sets: dict[_Part, int], part: _Part, bit: int) -> None:
    left = sets.get(part, 0) & ~bit
    if left:
        sets[part] = left
    else:
        sets.pop(part, None)


def _by_owner(mark: str, owners: set[str]) -> set[_Key]:
    """In the set for all, and in that of its owner where there is just one."""
    if not owners:
        return set()
    return {(mark, None), (mark, next(iter(owners)))} if len(owners) == 1 else {(mark, None)}
