"""Why requests wait, and why they are refused: what there is to say is gathered here, and put in words elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kalavai_nb.ledger.chances import Chances
from kalavai_nb.ledger.devices import Devices
from kalavai_nb.ledger.holdings import CLEARING, HERE, LEAVING, Holdings
from kalavai_nb.ledger.line import Request
from kalavai_nb.ledger.reach import Reach
from kalavai_nb.reasons import MOST_NAMED, Wait, apart, too_many, why_waiting
from kalavai_nb.state import Device, Need

# devices of a request that are looked at one by one to say who holds them; of the rest it is said how many they are
MOST_LOOKED_AT = 32


@dataclass(frozen=True)
class Leaving:
    """A device is leaving, and will have left then."""

    why: str
    until: float

    def sentence(self, now: float) -> str:
        return f"{self.why}: {max(0.0, self.until - now):.0f} s left"


class Words:
    """Knows all that decides, and says it."""

    def __init__(self, devices: Devices, holdings: Holdings, chances: Chances, reach: Reach) -> None:
        self._devices, self._holdings, self._chances, self._reach = devices, holdings, chances, reach

    def refusal(self, need: Need, leaving: dict[str, str]) -> str:
        """Why this can never be granted."""
        expected = self._devices.expected
        fitting = [device for device in expected if need.fits(device)]
        if need.connected and len(fitting) >= need.count and need.per == 1:
            pairs = self._pairs(fitting, lambda one, other: not self._reach.perhaps(one, other))
            return apart(need, list(itertools.islice(pairs, MOST_NAMED)))
        going = {str(device): leaving[device.id] for device in expected if device.id in leaving}
        return too_many(need, expected, going)

    def reason(self, place: int, request: Request, leaving: dict[str, str], idle_seconds: float, now: float) -> str:
        """Why this request waits, which has that place in the queue."""
        need, holdings = request.need, self._holdings
        if not self._chances.is_possible(request):
            return f"the pool was started a moment ago, and its machines come back. Now: {self.refusal(need, leaving)}"
        here = request.fits & holdings.set_of(HERE)
        usable = holdings.usable(need, request.fits)
        going, closing = here & holdings.set_of(LEAVING), here & holdings.set_of(CLEARING)
        held = here & ~usable & ~going
        free, pinned = usable.bit_count(), 0
        for bit in self._chances.pinned(need):
            pinned |= bit
        # ranks that are there already are where they are, however many other devices are free
        is_pinned = bool(pinned & held) and free >= need.count
        if is_pinned:
            held &= pinned
            free = (usable & pinned).bit_count() + need.count - pinned.bit_count()
        looked_at = list(itertools.islice(self._devices.each(held), MOST_LOOKED_AT))
        looked_at.sort(key=lambda device: (device.host, device.machine, device.index))
        blocked = {str(device): holdings.blockers(device.id, need) for device in looked_at}
        away = [a for a in self._devices.away.values() if self._devices.bit(a.device.id) & request.fits]
        wait = Wait(
            free=free,
            holders=blocked,
            others=held.bit_count() - len(looked_at),
            closing=[str(device) for device in looked_at if self._devices.bit(device.id) & closing],
            leaving={str(d): leaving[d.id] for d in itertools.islice(self._devices.each(going), MOST_LOOKED_AT)},
            left={str(each.device): each.why for each in away if each.why},
            lost=[str(each.device) for each in away if not each.why],
            unmeasured=self._unmeasured(request, usable) if need.connected else [],
            is_pinned=is_pinned,
            is_split=need.connected and usable.bit_count() >= need.count,
        )
        return why_waiting(place, need, wait, idle_seconds, now)

    def _unmeasured(self, request: Request, usable: int) -> list[tuple[str, str]]:
        """Pairs of machines of which it has to be known whether they reach each other."""
        is_dormant = self._chances.is_dormant(request)
        if not is_dormant and usable.bit_count() < request.need.count:
            return []
        concerned = list(self._devices.each(request.fits if is_dormant else usable))
        unknown = self._pairs(concerned, lambda a, b: not self._reach.together(a, b) and self._reach.perhaps(a, b))
        return list(itertools.islice(unknown, MOST_NAMED))

    @staticmethod
    def _pairs(devices: list[Device], so: Callable[[str, str], bool]) -> Iterator[tuple[str, str]]:
        """The names of the hosts of machines of which this is so."""
        hosts = {device.machine: device.host for device in sorted(devices, key=lambda device: device.host)}
        return ((hosts[a], hosts[b]) for a, b in itertools.combinations(hosts, 2) if so(a, b))
