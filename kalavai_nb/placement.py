"""Which of the devices that will do are taken. Pure.

Sets of devices are whole numbers here, a bit for each device, and the better the device, the lower its bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kalavai_nb.state import Need


@dataclass(frozen=True)
class Ground:
    """What a pool is like: the devices of each machine, and where each is; those of equal speed, fastest first; who
    reaches whom.
    """

    machines: Mapping[str, int]
    where: Callable[[int], str]
    tiers: Sequence[int]
    reaches: Callable[[str, str], bool]


@dataclass(frozen=True)
class Liking:
    """Which device is taken first: one of which less is given away (``levels``), then one of ``prefer``, in order."""

    levels: Sequence[int] = (-1,)
    prefer: Sequence[int] = ()

    def each(self, devices: int) -> Iterator[int]:
        """The bits of these devices, the best first."""
        for level in self.levels:
            part = devices & level
            for bit in self.prefer:
                if part & bit:
                    part ^= bit
                    yield bit
            while part:
                bit = part & -part
                part ^= bit
                yield bit

    def rank(self, devices: int) -> tuple[int, int, int]:
        """How good the best of these devices is: the less, the better."""
        for number, level in enumerate(self.levels):
            if part := devices & level:
                for place, bit in enumerate(self.prefer):
                    if part & bit:
                        return number, place, bit
                return number, len(self.prefer), part & -part
        return len(self.levels), 0, 0


ANY = Liking()


@dataclass(frozen=True)
class _Site:
    """A machine, those of its devices that will do, and how many of them can be had in whole groups."""

    machine: str
    devices: int
    room: int


_Spread = list[tuple[_Site, int]]


def can_place(need: Need, usable: int, pinned: Sequence[int], ground: Ground) -> bool:
    """Whether these devices are enough."""
    held, wanted = _pinned(need, pinned)
    if held & ~usable or (usable & ~held).bit_count() < wanted:
        return False
    if need.per == 1 and not need.connected:
        return True
    return _spread(need, usable & ~held, wanted, held, ANY, ground) is not None


def choose(need: Need, usable: int, pinned: Sequence[int], liking: Liking, ground: Ground) -> list[int]:
    """The bits of the devices to grant: ``pinned`` ones, then others on few machines; empty where it cannot be.

    A gang runs at the pace of its slowest device, so of two that span as few machines, the one of equal speed is taken.
    """
    held, wanted = _pinned(need, pinned)
    rest = usable & ~held
    if held & ~usable or rest.bit_count() < wanted:
        return []
    if need.count == 1:
        return list(pinned[:1]) or [next(liking.each(rest))]
    tiers = [tier for tier in ground.tiers if tier & rest]
    options = [rest & tier for tier in tiers if (rest & tier).bit_count() >= wanted] if len(tiers) > 1 else []
    found = []
    for option in [*options, rest]:
        spread = _spread(need, option, wanted, held, liking, ground)
        if spread is not None:
            taken = [bit for site, count in spread for bit in itertools.islice(liking.each(site.devices), count)]
            found.append((_cost(len(spread), taken, tiers), taken))
    if not found:
        return []
    _, best = min(found, key=lambda entry: entry[0])
    return [*pinned[: need.count], *best]


def _pinned(need: Need, pinned: Sequence[int]) -> tuple[int, int]:
    """The set of the devices that have to be among those granted, and how many more are wanted."""
    held = 0
    for bit in pinned:
        held |= bit
    return held, need.count - len(pinned[: need.count])


def _cost(machines: int, taken: Sequence[int], tiers: Sequence[int]) -> tuple[int, int, int]:
    """Few machines before many, then equal speed before unequal, then fast before slow."""
    spanned = [number for number, tier in enumerate(tiers) if any(tier & bit for bit in taken)]
    return machines, len(spanned), max(spanned, default=0)


def _spread(need: Need, rest: int, wanted: int, held: int, liking: Liking, ground: Ground) -> _Spread | None:
    """So many of these devices, from machines that reach each other where they have to; None where it cannot be."""
    base = (
        [machine for machine, devices in ground.machines.items() if devices & held] if need.connected and held else []
    )
    if any(not ground.reaches(a, b) for a in base for b in base):
        return None
    sites = []
    while rest:
        machine = ground.where(rest & -rest)
        part = rest & ground.machines[machine]
        rest ^= part
        count = part.bit_count()
        if (room := count // need.per * need.per) and all(ground.reaches(machine, other) for other in base):
            sites.append((-count, liking.rank(part), _Site(machine, part, room)))
    # the fullest machines first, so that a gang spans as few as it can
    sites.sort(key=lambda entry: entry[:2])
    in_order = [site for _, _, site in sites]
    if not need.connected:
        return _take(in_order, wanted)
    if sum(site.room for site in in_order) < wanted:
        return None
    least, best = _take(in_order, wanted) or [], None
    for start in in_order:
        clique: list[_Site] = [start]
        room = start.room
        for site in in_order:
            if room >= wanted:
                break
            if site is not start and all(ground.reaches(site.machine, member.machine) for member in clique):
                clique.append(site)
                room += site.room
        spread = _take(clique, wanted)
        if spread is not None and (best is None or len(spread) < len(best)):
            best = spread
            if len(best) <= len(least):
                break
    return best


def _take(sites: Sequence[_Site], wanted: int) -> _Spread | None:
    spread: _Spread = []
    for site in sites:
        if wanted <= 0:
            break
        spread.append((site, min(site.room, wanted)))
        wanted -= site.room
    return spread if wanted <= 0 else None
