"""Requests in the order in which they are served."""

from __future__ import annotations

import bisect
import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kalavai_nb.state import Need


@dataclass(eq=False)
class Request:
    """A request that waits. ``fits`` are the devices of the kind it asks for.

    What one request cannot be granted, another of the same ``shape`` behind it cannot either.
    """

    id: str
    need: Need
    since: float
    number: int
    fits: int = 0

    def __post_init__(self) -> None:
        need = self.need
        self.shape = (
            need.connected,
            need.owner,
            need.type,
            need.host,
            need.vram_bytes,
            need.avoid,
            need.share,
            need.wakes,
        )


class Line:
    """Who waits. Next comes the owner with the fewest running devices, then the request that has waited longest."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        # how many have been dropped
        self.turn = 0
        # of each owner; a plain dict takes long to find its first entry when those before it are gone
        self._of: dict[str, OrderedDict[str, Request]] = {}
        self._running: dict[str, int] = {}
        # one entry for each owner that waits, and in the order of the line: how much it runs, its first request
        self._heads: list[tuple[int, int, str]] = []
        self._wanted: dict[str, int] = {}
        # how many requests of an owner wake leases
        self._wakers: Counter[str] = Counter()

    def put(self, request: Request) -> None:
        """Queue this one, as the last of its owner."""
        owner = request.need.owner
        self.requests[request.id] = request
        mine = self._of.setdefault(owner, OrderedDict())
        mine[request.id] = request
        self._wanted[owner] = self._wanted.get(owner, 0) | request.fits
        if request.need.wakes:
            self._wakers[owner] += 1
        if len(mine) == 1:
            bisect.insort(self._heads, (self._running.get(owner, 0), request.number, owner))

    def drop(self, request_id: str) -> Request | None:
        """It waits no more. Returns it, if it did."""
        request = self.requests.pop(request_id, None)
        if request is None:
            return None
        self.turn += 1
        owner = request.need.owner
        mine = self._of[owner]
        head = self._head(owner)
        del mine[request_id]
        if request.need.wakes:
            self._wakers[owner] -= 1
            if not self._wakers[owner]:
                del self._wakers[owner]
        if head[1] == request.number:
            self._take(head)
            if mine:
                bisect.insort(self._heads, self._head(owner))
        if not mine:
            del self._of[owner], self._wanted[owner]
        return request

    def count(self, owner: str, devices: int) -> None:
        """The owner runs so many devices more, or less."""
        if devices and owner in self._of:
            self._take(self._head(owner))
        running = self._running.get(owner, 0) + devices
        if running:
            self._running[owner] = running
        else:
            self._running.pop(owner, None)
        if devices and owner in self._of:
            bisect.insort(self._heads, self._head(owner))

    def of(self, owner: str) -> list[Request]:
        """The requests of this owner, the oldest first."""
        return list(self._of[owner].values()) if owner in self._of else []

    def refit(self, fitting: Callable[[Need], int]) -> None:
        """Find out again what fits each."""
        self._wanted = dict.fromkeys(self._of, 0)
        for request in self.requests.values():
            request.fits = fitting(request.need)
            self._wanted[request.need.owner] |= request.fits

    def wants(self, owner: str, devices: int) -> bool:
        """Whether a request of this owner may have use for these devices, or wakes its own; it may be that none has."""
        return bool(self._wanted[owner] & devices) or owner in self._wakers

    def wakes(self, owner: str) -> bool:
        """Whether a request of this owner wakes leases."""
        return owner in self._wakers

    def among(self, owners: Iterable[object]) -> list[str]:
        """Those of these owners that wait, and those that wait to wake leases."""
        waiting = [owner for owner in owners if isinstance(owner, str) and owner in self._of]
        return list(dict.fromkeys([*waiting, *self._wakers])) if self._wakers else waiting

    def kept_before(self, request: Request, keepers: Iterable[tuple[Request, int]]) -> int:
        """What is kept by those of these that come before this one."""
        kept, place = 0, self._place(request)
        for keeper, devices in keepers:
            if self._place(keeper) < place:
                kept |= devices
        return kept

    def walk(self, may: Callable[[str], bool] = lambda owner: True) -> Iterator[Request]:
        """The requests in their order, without those of owners of whom it is not so, from where it is not so on."""
        heap = self._heads.copy()
        following: dict[str, tuple[Request, Iterator[Request]]] = {}
        while heap:
            running, _, owner = heap[0]
            if not may(owner):
                heapq.heappop(heap)
                continue
            if owner in following:
                request, rest = following[owner]
            else:
                rest = iter(self._of[owner].values())
                request = next(rest)
            after = next(rest, None)
            if after is None:
                heapq.heappop(heap)
            else:
                following[owner] = (after, rest)
                heapq.heapreplace(heap, (running, after.number, owner))
            yield request

    def _place(self, request: Request) -> tuple[int, int, str]:
        owner = request.need.owner
        return (self._running.get(owner, 0), request.number, owner)

    def _head(self, owner: str) -> tuple[int, int, str]:
        return self._place(next(iter(self._of[owner].values())))

    def _take(self, head: tuple[int, int, str]) -> None:
        del self._heads[bisect.bisect_left(self._heads, head)]
