"""Which devices, and in which order: the fewest are counted already, now the cheapest of them are chosen.

The cost of a choice is one number: as many turns of the slowest stage as there are stages, and the latency of once
round the ring. That is what a round of microbatches takes, and it weighs a faster device against a nearer one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from kalavai_nb.planner.demand import Demand
from kalavai_nb.planner.packing import EXACT, Place, by_room, find_order, holds, slowest, slowest_in
from kalavai_nb.planner.ring import Matrix, ring_seconds, short_rings, shortest_ring, tour

# orders of some candidates among many; of few devices, all are tried that could be best
_MOST_TRIED = 500


def arrange(
    demand: Demand, places: Sequence[Place], count: int, unit: float, rtt_seconds: Matrix | None
) -> tuple[int, list[int]]:
    """What the slowest stage may cost, and the order of the devices: the cheapest found among sets of candidates."""
    if count > EXACT:
        return _long(demand, places, count, rtt_seconds)
    limit = demand.work(0, demand.layers) * max(place.rate for place in places)
    best, found = math.inf, (limit, list[int]())
    for candidates in _candidates(places, count, rtt_seconds):
        if find_order(demand, places, candidates, count, limit) is not None:
            cost, most, order = _best(demand, places, candidates, count, unit, rtt_seconds, best)
            best, found = min((best, found), (cost, (most, order)))
    return found


def _candidates(places: Sequence[Place], count: int, rtt_seconds: Matrix | None) -> list[list[int]]:
    """Sets of at most `EXACT` to choose from: all where there are no more, else the roomiest, fastest, nearest."""
    roomy = by_room(places)
    if len(places) <= EXACT:
        return [sorted(roomy)]
    fast = sorted(roomy, key=lambda at: places[at].rate)
    sets = [roomy[:EXACT], fast[:EXACT], [*roomy[:count], *[at for at in fast if at not in roomy[:count]]][:EXACT]]
    if rtt_seconds is not None:
        sets += [_nearest(centre, roomy, rtt_seconds) for centre in roomy[: 2 * EXACT]]
    return [list(some) for some in dict.fromkeys(tuple(sorted(some)) for some in sets)]


def _nearest(centre: int, roomy: Sequence[int], rtt_seconds: Matrix) -> list[int]:
    return sorted(roomy, key=lambda at: (at != centre, rtt_seconds[centre][at]))[:EXACT]


def _best(
    demand: Demand,
    places: Sequence[Place],
    candidates: Sequence[int],
    count: int,
    unit: float,
    rtt_seconds: Matrix | None,
    known: float,
) -> tuple[float, int, list[int]]:
    """The cost of the cheapest order of ``count`` of these, exactly where it is less than what is ``known`` already."""
    least, order = slowest(demand, places, candidates, count)
    most, stages = least, count * least * unit
    best = stages + ring_seconds(order, rtt_seconds)
    if rtt_seconds is None or count == 1:
        return best, most, order
    nearest = shortest_ring(candidates, count, rtt_seconds)
    # a turned ring adds up in another order, to the last digit not to the same
    shortest = ring_seconds(nearest, rtt_seconds) * (1 + 1e-9)
    for turned in [*_rotations(nearest), *_rotations(nearest[::-1])]:
        if ring_seconds(turned, rtt_seconds) <= shortest and holds(demand, places, turned, least):
            return stages + ring_seconds(turned, rtt_seconds), least, turned

    def below() -> float:
        return min(best, known) - stages

    tries = None if len(places) <= EXACT else _MOST_TRIED
    for latency, other in islice(short_rings(candidates, count, rtt_seconds, below), tries):
        limit = int((best - latency) / (count * unit))
        if holds(demand, places, other, limit):
            most, order = slowest_in(demand, places, other, limit), other
            best = latency + count * most * unit
    return best, most, order


def _rotations(order: list[int]) -> list[list[int]]:
    return [order[at:] + order[:at] for at in range(len(order))]


def _long(demand: Demand, places: Sequence[Place], count: int, rtt: Matrix | None) -> tuple[int, list[int]]:
    """More devices than can be tried in every order: a short tour of the roomiest where it holds, else as they come."""
    roomy = by_room(places)[:count]
    limit = demand.work(0, demand.layers) * max(place.rate for place in places)
    if rtt is not None and (order := find_order(demand, places, tour(roomy, rtt), count, limit)) is not None:
        return slowest_in(demand, places, order, limit), order
    return slowest(demand, places, roomy, count)
