"""Making room for those who wait: idle sessions whose time is over, and sweeps that may go on elsewhere."""

from __future__ import annotations

import bisect

from kalavai_nb.ledger.chances import Chances
from kalavai_nb.ledger.devices import Devices
from kalavai_nb.ledger.holdings import ASKS, CLEARING, LEAVING, RIPE, UNRIPE, WHOLE, Holdings
from kalavai_nb.ledger.line import Line, Request
from kalavai_nb.state import Lease


class Room:
    """Says whose leases have to go. Those that are to be ended are gone from the holdings then, and are cleared."""

    def __init__(self, devices: Devices, holdings: Holdings, line: Line, chances: Chances) -> None:
        self._devices, self._holdings, self._line, self._chances = devices, holdings, line, chances
        # those for whom nobody has been asked to give something back
        self._new: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """This one waits from now on."""
        self._new[request.id] = request

    def take_back(self) -> list[tuple[Lease, str]]:
        """Leases of idle sessions whose time is over, where that makes a request fit; and whose request that is."""
        taken: list[tuple[Lease, str]] = []
        holdings = self._holdings
        left = holdings.set_of(RIPE) & ~holdings.set_of(UNRIPE) & ~holdings.set_of(WHOLE)
        left &= ~holdings.set_of(CLEARING) & ~holdings.set_of(LEAVING)
        kept, tried = 0, set()
        for request in self._line.walk() if left else ():
            if request.shape in tried or self._chances.is_dormant(request):
                continue
            tried.add(request.shape)
            chosen, leases = self._for(request, kept)
            for lease in leases:
                self.end(lease)
                taken.append((lease, request.need.owner))
            kept |= chosen | holdings.kept(request.need, request.fits)
            left &= ~kept
            if not left:
                break
        return taken

    def end(self, lease: Lease) -> None:
        """A lease goes as a whole, with every device it holds."""
        self._holdings.drop(lease.id)
        for id in lease.devices:
            self._holdings.mark(CLEARING, id, True)

    def ask_back(self) -> list[Lease]:
        """The leases of sweeps that stand in somebody's way, each once; in that of its own sweep for another share.

        In the way of those that have waited before is only what has changed since.
        """
        holdings, line = self._holdings, self._line
        changed = self._devices.all_of(holdings.changed) & holdings.set_of(ASKS)
        holdings.changed.clear()
        new = self._new = {id: request for id, request in self._new.items() if id in line.requests}
        asked: list[Lease] = []
        for request in line.walk() if changed else list(new.values()):
            if not changed and not new:
                break
            if self._chances.is_dormant(request):
                new[request.id] = request
                continue
            need, is_new = request.need, new.pop(request.id, None) is not None
            for device in self._devices.each(request.fits & (holdings.asked_of(need) if is_new else changed)):
                for lease in holdings.blockers(device.id, need):
                    if holdings.may_ask(lease) and not need.shares_with(lease):
                        holdings.ask_back(lease)
                        asked.append(lease)
            changed &= holdings.set_of(ASKS)
        return asked

    def _for(self, request: Request, kept: int) -> tuple[int, list[Lease]]:
        """The devices that this request is to have, and the leases that have to go for it, longest idle first."""
        need, holdings, chances = request.need, self._holdings, self._chances
        ripe = holdings.for_taking(need, request.fits) & ~kept
        soon_free = holdings.set_of(CLEARING) & request.fits & ~holdings.set_of(LEAVING)
        free = (holdings.usable(need, request.fits) | soon_free) & ~kept
        if not ripe or not chances.fits(need, free | ripe):
            return 0, []
        since = {d.id: min(b.since for b in holdings.blockers(d.id, need)) for d in self._devices.each(ripe)}
        in_order = sorted(since, key=lambda id: since[id])
        with_first = [free | self._devices.all_of(in_order[:count]) for count in range(len(in_order) + 1)]
        # the more there are, the better it fits: the fewest that do are found by halving
        fewest = bisect.bisect_left(with_first, True, key=lambda usable: chances.fits(need, usable))
        chosen = 0
        for bit in chances.choose(need, with_first[min(fewest, len(in_order))]):
            chosen |= bit
        going = [id for id in in_order[:fewest] if self._devices.bit(id) & chosen]
        return chosen, list({b.id: b for id in going for b in holdings.blockers(id, need)}.values())
