"""One quantisation: what it weighs, how many devices it needs, how fast it could be on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from kalavai_nb.planner.cards import GB
from kalavai_nb.planner.demand import Demand
from kalavai_nb.planner.links import Links
from kalavai_nb.planner.packing import Place, fewest
from kalavai_nb.planner.quants import Quant
from kalavai_nb.planner.seats import USABLE, Seat
from kalavai_nb.planner.shortfall import common_bytes, more_devices
from kalavai_nb.planner.speed import Speed, bound
from kalavai_nb.planner.split import Split, assign


@dataclass(frozen=True)
class Row:
    """One quantisation on the devices that there are, and on more of the commonest size where they do not do.

    ``at_least`` is memory divided by memory; ``devices`` counts whole layers, and is None where no number of such
    devices holds the model. ``split`` and ``speed`` are of that many. ``by_size`` is {GB of a card: how many of it}.
    """

    quant: Quant
    weights_bytes: int
    total_bytes: int
    at_least: int | None
    devices: int | None
    fits: bool
    split: Split | None
    speed: Speed | None
    by_size: dict[int, int | None]


def count(demand: Demand, seats: Sequence[Seat], links: Links, sizes_gb: Sequence[int] = ()) -> Row:
    """The row of one quantisation; ``sizes_gb`` are cards to count beside."""
    whole = demand.room(0, demand.layers)
    total = max(whole.total_bytes, math.ceil(whole.weights_bytes * demand.overhead))
    there = _with_more(demand, seats)
    split = None
    if there is not None:
        split = assign(demand, there, links.matrix(len(there)))
        split = replace(split, ring_seconds=links.round_seconds(split))
    return Row(
        quant=demand.quant,
        weights_bytes=whole.weights_bytes,
        total_bytes=total,
        at_least=at_least(total, seats),
        devices=len(split.stages) if split else None,
        fits=there is not None and len(there) == len(seats),
        split=split,
        speed=bound(demand.shape, split, links.width) if split else None,
        by_size={size: _alike(demand, size * GB) for size in sizes_gb},
    )


def at_least(total_bytes: int, seats: Sequence[Seat]) -> int | None:
    """The devices whose memory, taken together, is enough: no number below it can do. None without memory."""
    usable = sorted((seat.usable_bytes for seat in seats), reverse=True)
    for number, sum_bytes in enumerate(accumulate(usable), start=1):
        if sum_bytes >= total_bytes:
            return number
    more = int(common_bytes(seats) * USABLE)
    if more <= 0:
        return None
    return len(seats) + math.ceil((total_bytes - sum(usable)) / more)


def _with_more(demand: Demand, seats: Sequence[Seat]) -> list[Seat] | None:
    """These devices, with as many more of the commonest size as it takes; None where no number does."""
    if fewest(demand, [Place(seat.usable_bytes) for seat in seats]) is not None:
        return list(seats)
    size = common_bytes(seats)
    if (more := more_devices(demand, seats, size)) is None:
        return None
    like = next(seat for seat in seats if seat.free_bytes == size)
    return [*seats, *[replace(like, id="")] * more]


def _alike(demand: Demand, free_bytes: int) -> int | None:
    """How many devices of this size alone."""
    return more_devices(demand, (), free_bytes)
