"""Whose turn it is: the first request of the queue that can be granted; each before it keeps what it could use.

Hundreds may wait, and most of what happens changes nothing for most of them. So what was found to be of no use is not
looked at again before something has happened to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from kalavai_nb.ledger.chances import Chances
from kalavai_nb.ledger.holdings import CLEARING, HERE, LEAVING, UNRIPE, WHOLE, Holdings
from kalavai_nb.ledger.line import Line, Request


class Turns:
    """``next`` is called until it finds nobody, then, when room has been made for others, ``done``."""

    def __init__(self, holdings: Holdings, line: Line, chances: Chances) -> None:
        self._holdings, self._line, self._chances = holdings, line, chances
        # when all had been looked at: what there was, and who kept which devices; and who has asked since
        self._seen = (-1, -1, -1)
        self._keepers: list[tuple[Request, int]] = []
        self._came: list[Request] = []
        # owners that wait, and cannot be granted what only their own sessions are on
        self._stuck: set[str] = set()

    def come(self, request: Request) -> None:
        """This one has just been queued."""
        self._came.append(request)
        self._stuck.discard(request.need.owner)

    def forget(self) -> None:
        """More has changed than devices and leases."""
        self._stuck.clear()

    def begin(self) -> bool:
        """Whether anything may have its turn now that had not when all had been looked at."""
        is_due = self._seen != self._state() or any(map(self._may_be_next, self._came))
        if is_due:
            self._keepers.clear()
        return is_due

    def done(self) -> None:
        """All have been looked at."""
        self._seen = self._state()
        self._came.clear()

    def next(self) -> tuple[Request, list[int]] | None:
        """The request whose turn it is, and the bits of its devices."""
        holdings, kept, tried = self._holdings, 0, set()
        self._keepers.clear()
        left = holdings.set_of(HERE) & ~holdings.set_of(WHOLE)
        left &= ~holdings.set_of(CLEARING) & ~holdings.set_of(LEAVING)
        # on the rest there are idle sessions, so that they are for one owner each
        for_all, own = left & ~holdings.set_of(UNRIPE), holdings.parts_of(UNRIPE)
        self._stuck -= holdings.touched
        holdings.touched.clear()

        def in_turn() -> Iterator[Request]:
            wants = self._line.wants
            for request in self._line.walk(lambda owner: wants(owner, for_all | left & own.get(owner, 0))):
                if not for_all:
                    break
                yield request
            for owner in self._line.among(own):
                if owner in self._stuck:
                    continue
                for request in self._line.of(owner):
                    if not left & own.get(owner, 0) and not self._line.wakes(owner):
                        break
                    yield request
                # until something happens to its sessions, or it asks again
                self._stuck |= {owner} if not self._line.wakes(owner) else set()

        for request in in_turn():
            need = request.need
            if not (request.fits & (for_all | left & own.get(need.owner, 0)) or need.wakes):
                continue
            if request.shape in tried or self._chances.is_dormant(request):
                continue
            if chosen := self._chances.choose(need, holdings.usable(need, request.fits) & ~kept):
                self._stuck.discard(need.owner)
                return request, chosen
            tried.add(request.shape)
            keeps = holdings.kept(need, request.fits)
            self._keepers.append((request, keeps))
            kept |= keeps
            left, for_all = left & ~kept, for_all & ~kept
        return None

    def _state(self) -> tuple[int, int, int]:
        return self._holdings.turn, self._line.turn, self._chances.turn

    def _may_be_next(self, request: Request) -> bool:
        """Whether there may be room for this one among what is not kept by those before it."""
        need, holdings = request.need, self._holdings
        free = ~self._line.kept_before(request, self._keepers)
        if holdings.for_taking(need, request.fits) & free:
            return True
        return self._chances.fits(need, holdings.usable(need, request.fits) & free)
