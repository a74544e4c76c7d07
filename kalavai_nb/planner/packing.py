"""Which layers go where: whole layers, in order, one run of them for each device. Exact in integers.

A device is a place with ``usable_bytes`` and a ``rate``: what one parameter of work costs there. All rests on one fact:
given how slow the slowest stage may be, the stage that begins later also ends later, so that it is best to take as many
layers as go. Then only the set of devices that are taken matters for how far they reach, not each order of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kalavai_nb.planner.demand import Demand

# up to so many devices, all sets of them are tried
EXACT = 8


@dataclass(frozen=True)
class Place:
    """A device in numbers."""

    usable_bytes: int
    rate: int = 1


def fewest(demand: Demand, places: Sequence[Place]) -> int | None:
    """How many of these places hold the model, the roomiest first; None where all do not."""
    most = _no_limit(demand, places)
    ranked = by_room(places)
    at_least = demand.room(0, demand.layers).weights_bytes * demand.overhead
    for count in range(1, min(len(places), demand.layers) + 1):
        if sum(places[at].usable_bytes for at in ranked[:count]) < at_least:
            continue
        if find_order(demand, places, ranked[:count], count, most) is not None:
            return count
    return None


def by_room(places: Sequence[Place]) -> list[int]:
    """Their indices, the roomiest and then the fastest first."""
    return sorted(range(len(places)), key=lambda at: (-places[at].usable_bytes, places[at].rate, at))


def find_order(
    demand: Demand, places: Sequence[Place], candidates: Sequence[int], count: int, most: int
) -> list[int] | None:
    """``count`` of the candidates in an order that holds the model, no stage costing more than ``most``.

    None where there is no such order. Of more than `EXACT` candidates, the first in their order and some orders like it
    are tried.
    """
    if len(candidates) > EXACT:
        return next((order for order in _likely(candidates[:count]) if holds(demand, places, order, most)), None)
    # {set of candidates, as bits: how far it reaches}, for sets of one size more in each turn
    level, came_by = {0: 0}, {0: -1}
    for taken in range(count - 1):
        farther: dict[int, int] = {}
        for members, start in level.items():
            for bit, at in enumerate(candidates):
                if members >> bit & 1:
                    continue
                end = _end(demand, places[at], start, most, leave=count - 1 - taken)
                if end > max(start, farther.get(members | 1 << bit, 0)):
                    farther[members | 1 << bit], came_by[members | 1 << bit] = end, bit
        level = farther
    for members, start in level.items():
        for bit, at in enumerate(candidates):
            if not members >> bit & 1 and _closes(demand, places[at], start, most):
                return [*_walk(members, came_by, candidates), at]
    return None


def holds(demand: Demand, places: Sequence[Place], order: Sequence[int], most: int) -> bool:
    """Whether the model can be cut over this order, each place taking a layer at least and ``most`` work at most."""
    start = 0
    for taken, at in enumerate(order[:-1], start=1):
        end = _end(demand, places[at], start, most, leave=len(order) - taken)
        if end <= start:
            return False
        start = end
    return _closes(demand, places[order[-1]], start, most)


def reached(demand: Demand, places: Sequence[Place], order: Sequence[int]) -> int:
    """How many layers find room, where all do not."""
    start, most = 0, _no_limit(demand, places)
    for at in order:
        start = demand.reach(start, places[at].usable_bytes, most // places[at].rate)
    return start


def slowest(demand: Demand, places: Sequence[Place], candidates: Sequence[int], count: int) -> tuple[int, list[int]]:
    """The least that the slowest of ``count`` stages can cost, and an order that costs it. There must be one."""
    low, high = 0, _no_limit(demand, places)
    best = find_order(demand, places, candidates, count, high)
    assert best is not None
    while low < high:
        middle = (low + high) // 2
        if (order := find_order(demand, places, candidates, count, middle)) is None:
            low = middle + 1
        else:
            high, best = middle, order
    return high, best


def slowest_in(demand: Demand, places: Sequence[Place], order: Sequence[int], high: int) -> int:
    """The least that the slowest stage can cost in this order, which must hold the model at ``high``."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(demand, places, order, middle) else (middle + 1, high)
    return high


def cut(demand: Demand, places: Sequence[Place], order: Sequence[int], most: int) -> list[int]:
    """Where each stage ends, no stage costing more than ``most``: the least work in all, then the most even one."""
    # {end of the stages so far: (work in all, its squares, where they end)}
    so_far: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for taken, at in enumerate(order[:-1], start=1):
        place, farther = places[at], dict[int, tuple[int, int, tuple[int, ...]]]()
        for start, (cost, squares, ends) in so_far.items():
            for end in range(start + 1, _end(demand, place, start, most, leave=len(order) - taken) + 1):
                own = demand.work(start, end) * place.rate
                if end not in farther or (cost + own, squares + own * own) < farther[end][:2]:
                    farther[end] = (cost + own, squares + own * own, (*ends, end))
        so_far = farther
    last = places[order[-1]]
    choices = []
    for start, (cost, squares, ends) in so_far.items():
        if _closes(demand, last, start, most):
            own = demand.work(start, demand.layers) * last.rate
            choices.append((cost + own, squares + own * own, (*ends, demand.layers)))
    return list(min(choices)[2])


def _end(demand: Demand, place: Place, start: int, most: int, leave: int) -> int:
    """As far as this place reaches, a layer being left for each of those that come after it."""
    return min(demand.reach(start, place.usable_bytes, most // place.rate), demand.layers - leave)


def _closes(demand: Demand, place: Place, start: int, most: int) -> bool:
    works = demand.work(start, demand.layers) * place.rate <= most
    return works and demand.fits(start, demand.layers, place.usable_bytes)


def _no_limit(demand: Demand, places: Sequence[Place]) -> int:
    return demand.work(0, demand.layers) * max((place.rate for place in places), default=1)


def _walk(members: int, came_by: dict[int, int], candidates: Sequence[int]) -> list[int]:
    """The order in which a set came to reach as far as it does."""
    order: list[int] = []
    while members:
        bit = came_by[members]
        order.insert(0, candidates[bit])
        members ^= 1 << bit
    return order


def _likely(order: Sequence[int]) -> list[list[int]]:
    """An order, and those with other ends: embedding and head need room beside layers."""
    turned = [[*order[1:], order[0]], [order[-1], *order[:-1]], [*order[2:], order[1], order[0]]]
    return [list(order), [order[0], *order[2:], order[1]], *turned, list(order[::-1])]
