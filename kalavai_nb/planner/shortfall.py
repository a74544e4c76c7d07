"""What would make a model fit that does not: by how much, at which quantisation, with how many more devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kalavai_nb.errors import ModelError
from kalavai_nb.planner.demand import Demand
from kalavai_nb.planner.packing import Place, by_room, fewest, find_order, reached
from kalavai_nb.planner.quants import QUANTS, Quant
from kalavai_nb.planner.seats import Seat

GIB = 2**30
_MOST_MORE = 4096


class DoesNotFit(ModelError):
    """A model that these devices do not hold.

    ``missing_bytes`` is what finds no room; ``fitting_quant`` the best quantisation at which it would fit here, or
    None; ``more_devices`` how many more of ``device_bytes`` would do, or None where no number would.
    """

    def __init__(
        self, sentence: str, missing_bytes: int, fitting_quant: str | None, more_devices: int | None, device_bytes: int
    ) -> None:
        super().__init__(sentence)
        self.missing_bytes, self.fitting_quant = missing_bytes, fitting_quant
        self.more_devices, self.device_bytes = more_devices, device_bytes


def does_not_fit(
    demand: Demand, seats: Sequence[Seat], stages: int | None = None, quants: Sequence[Quant] = QUANTS
) -> DoesNotFit:
    """The error that says so, and what to do."""
    missing, fitting = missing_bytes(demand, seats), fitting_quant(demand, seats, stages, quants)
    size = common_bytes(seats)
    more = more_devices(demand, seats, size) if size else None
    ways = []
    if fitting is not None:
        ways.append(f"with quant={fitting.name!r} ({fitting.bits:g} bits per weight)")
    if more is not None and stages is None:
        ways.append(f"with {more} more device{'s' * (more != 1)} of {_size(size)} free")
    on = f"{stages} of these {len(seats)}" if stages else f"{len(seats)}"
    sentence = (
        f"{demand.shape.name} at {demand.quant.name} does not fit on {on} device{'s' * (len(seats) != 1)}: "
        f"{_size(missing)} find no room. {_advice(ways)}"
    )
    return DoesNotFit(sentence, missing, fitting.name if fitting else None, more, size)


def missing_bytes(demand: Demand, seats: Sequence[Seat]) -> int:
    """What is left over when the devices are full, the roomiest filled first."""
    places = _places(seats)
    placed = reached(demand, places, by_room(places))
    left = demand.room(placed, demand.layers)
    return left.total_bytes if placed else demand.room(0, demand.layers).total_bytes


def fitting_quant(
    demand: Demand, seats: Sequence[Seat], stages: int | None = None, quants: Sequence[Quant] = QUANTS
) -> Quant | None:
    """The one with the most bits, below those that were asked for, at which the model fits on these devices."""
    places = _places(seats)
    for quant in sorted(quants, key=lambda quant: -quant.bits):
        if quant.bits < demand.quant.bits and _fits(demand.at(quant), places, stages):
            return quant
    return None


def more_devices(demand: Demand, seats: Sequence[Seat], device_bytes: int) -> int | None:
    """How many more devices with so much free would do; None where no number would."""
    one = _places([Seat("", device_bytes)])
    places = _places(seats)
    low, high = 0, 1
    while fewest(demand, places + one * high) is None:
        low, high = high, high * 2
        if high > min(_MOST_MORE, 2 * demand.layers):
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fewest(demand, places + one * middle) is not None else (middle, high)
    return high


def common_bytes(seats: Sequence[Seat]) -> int:
    """The free memory that most devices have, in steps of a GiB; of two such, the larger. 0 without devices."""
    sizes = Counter(round(seat.free_bytes / GIB) for seat in seats)
    if not sizes:
        return 0
    common = max(sizes, key=lambda size: (sizes[size], size))
    return min(seat.free_bytes for seat in seats if round(seat.free_bytes / GIB) == common)


def _fits(demand: Demand, places: Sequence[Place], stages: int | None) -> bool:
    if stages is None:
        return fewest(demand, places) is not None
    ranked = by_room(places)[:stages]
    return find_order(demand, places, ranked, stages, demand.work(0, demand.layers)) is not None


def _places(seats: Sequence[Seat]) -> list[Place]:
    return [Place(seat.usable_bytes) for seat in seats]


def _advice(ways: Sequence[str]) -> str:
    if not ways:
        return "No quantisation and no number of such devices will do: choose a smaller model."
    either = ", or ".join(ways)
    return f"{either[0].upper()}{either[1:]}, it would fit."


def _size(number_bytes: int) -> str:
    return f"{number_bytes / GIB:.1f} GiB" if number_bytes >= GIB / 10 else f"{number_bytes / 2**20:.0f} MiB"
