"""Whether a request can be granted: now, soon, or ever; and with which devices."""

from __future__ import annotations

from kalavai_nb.ledger.devices import Devices
from kalavai_nb.ledger.holdings import LEAVING, Holdings
from kalavai_nb.ledger.line import Request
from kalavai_nb.ledger.reach import Reach
from kalavai_nb.placement import Ground, can_place, choose
from kalavai_nb.state import Need

MOST_ANSWERS = 4096


class Chances:
    """Answers are kept until `forget`."""

    def __init__(self, devices: Devices, holdings: Holdings, reach: Reach) -> None:
        self._devices, self._holdings, self._reach = devices, holdings, reach
        self._answers: dict[tuple[object, ...], bool] = {}
        # how often they were forgotten
        self.turn = 0
        # those that have left
        self._left: int | None = None

    def forget(self) -> None:
        """Devices or links have changed."""
        self._answers.clear()
        self._left = None
        self.turn += 1

    def is_possible(self, request: Request) -> bool:
        """Whether the pool could grant this, were nobody else there, all devices back, and all links as hoped for."""
        return self._answer(request, request.fits, known=False)

    def is_dormant(self, request: Request) -> bool:
        """Whether this waits for a device that leaves or has left, or for a link to be measured.

        It keeps nothing from others, and takes nothing from them.
        """
        if self._left is None:
            self._left = self._devices.all_of(id for id, away in self._devices.away.items() if away.why)
        fits = request.fits & ~self._left & ~self._holdings.set_of(LEAVING)
        return not self._answer(request, fits, known=True)

    def fits(self, need: Need, usable: int) -> bool:
        """Whether this need can be met with these devices."""
        return can_place(need, usable, self.pinned(need), self._ground(known=True))

    def choose(self, need: Need, usable: int) -> list[int]:
        """The devices to grant, of these; none where it cannot be."""
        if usable.bit_count() < need.count:
            return []
        return choose(need, usable, self.pinned(need), self._holdings.liking(need), self._ground(known=True))

    def pinned(self, need: Need) -> list[int]:
        """The devices of the leases that this wakes."""
        return self._holdings.pinned(need) if need.wakes else []

    def _answer(self, request: Request, fits: int, *, known: bool) -> bool:
        need = request.need
        key = (known, fits, need.count, need.per, need.connected, tuple(self.pinned(need)))
        if key not in self._answers:
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            self._answers[key] = can_place(need, fits, self.pinned(need), self._ground(known))
        return self._answers[key]

    def _ground(self, known: bool) -> Ground:
        reaches = self._reach.together if known else self._reach.perhaps
        return Ground(self._devices.machines, self._devices.where, self._devices.tiers, reaches)
