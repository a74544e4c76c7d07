"""The way of a token: through the stages and from the last back to the first, half a round trip each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

Matrix = Sequence[Sequence[float]]


def ring_seconds(order: Sequence[int], rtt_seconds: Matrix | None) -> float:
    """Latency of one round; 0 on one device, and where nothing was measured."""
    if rtt_seconds is None or len(order) < 2:
        return 0.0
    return sum(rtt_seconds[a][b] for a, b in pairwise([*order, order[0]])) / 2


def shortest_ring(seats: Sequence[int], count: int, rtt_seconds: Matrix) -> list[int]:
    """``count`` of the seats, in the order of the shortest ring there is (Held and Karp's way, over sets)."""
    best: tuple[float, list[int]] = (math.inf, [])
    for at, first in enumerate(seats):
        # {(seats that were passed, the last of them): (latency, the way)}; the first has the lowest index of its ring
        ways: dict[tuple[frozenset[int], int], tuple[float, list[int]]] = {(frozenset([first]), first): (0.0, [first])}
        for _ in range(count - 1):
            longer: dict[tuple[frozenset[int], int], tuple[float, list[int]]] = {}
            for (passed, last), (latency, way) in ways.items():
                for seat in seats[at + 1 :]:
                    if seat not in passed:
                        key, new = (passed | {seat}, seat), latency + rtt_seconds[last][seat]
                        if key not in longer or new < longer[key][0]:
                            longer[key] = (new, [*way, seat])
            ways = longer
        closed = ((latency + rtt_seconds[last][first], way) for (_, last), (latency, way) in ways.items())
        best = min(best, min(closed, default=best))
    return best[1]


def short_rings(
    seats: Sequence[int], count: int, rtt_seconds: Matrix, below: Callable[[], float]
) -> Iterator[tuple[float, list[int]]]:
    """Every order of ``count`` of the seats whose latency is below what ``below`` says just then, near ones first."""
    shortest = min(rtt_seconds[a][b] for a in seats for b in seats if a != b) / 2
    nearest = {a: sorted(seats, key=lambda b, row=rtt_seconds[a]: (row[b], b)) for a in seats}  # type: ignore[misc]

    def walk(order: list[int], latency: float) -> Iterator[tuple[float, list[int]]]:
        if len(order) == count:
            whole = latency + rtt_seconds[order[-1]][order[0]] / 2
            if whole < below():
                yield whole, order
            return
        row, left = rtt_seconds[order[-1]], (count - len(order)) * shortest
        for at in nearest[order[-1]]:
            if at not in order:
                farther = latency + row[at] / 2
                if farther + left >= below():
                    return
                yield from walk([*order, at], farther)

    for first in seats:
        yield from walk([first], 0.0)


def tour(seats: Sequence[int], rtt_seconds: Matrix) -> list[int]:
    """A short ring through all seats, from the first on: always to the nearest, then untangled (2-opt)."""
    left, order = list(seats[1:]), [seats[0]]
    while left:
        nearest = min(left, key=lambda seat: (rtt_seconds[order[-1]][seat], left.index(seat)))
        left.remove(nearest)
        order.append(nearest)
    better = True
    while better:
        better = False
        for i in range(1, len(order) - 1):
            for j in range(i + 1, len(order)):
                turned = order[:i] + order[i : j + 1][::-1] + order[j + 1 :]
                if ring_seconds(turned, rtt_seconds) < ring_seconds(order, rtt_seconds) - 1e-12:
                    order, better = turned, True
    return order
