"""Where the stages of a model go: fewest devices, then the least time of a round, in whole layers over real memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from kalavai_nb.errors import ModelError
from kalavai_nb.planner.arrange import arrange
from kalavai_nb.planner.demand import Demand, Room
from kalavai_nb.planner.packing import Place, by_room, cut, fewest, find_order
from kalavai_nb.planner.quants import QUANTS, Quant, read_quant
from kalavai_nb.planner.ring import Matrix, ring_seconds
from kalavai_nb.planner.seats import Seat
from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.shortfall import does_not_fit

# weighs latency against speed where no speed is known; never shown
_GUESSED_SECONDS_PER_LAYER = 0.005
_FINENESS = 10**6


@dataclass(frozen=True)
class Stage:
    """The layers [start, end) on one device. ``seconds_per_token`` is None where nothing tells its speed."""

    device: Seat
    start: int
    end: int
    room: Room
    seconds_per_token: float | None

    @property
    def layers(self) -> int:
        """How many."""
        return self.end - self.start

    @property
    def weights_bytes(self) -> int:
        """Its layers, and the embedding or the head where it has that end of the model."""
        return self.room.weights_bytes

    @property
    def kv_bytes(self) -> int:
        """Its caches, full."""
        return self.room.kv_bytes

    @property
    def memory_bytes(self) -> int:
        """Weights, caches and what activations need."""
        return self.room.total_bytes


@dataclass(frozen=True)
class Split:
    """The stages in the order of the ring, the devices that are left, and the latency of once round the ring."""

    stages: tuple[Stage, ...]
    spares: tuple[Seat, ...]
    quant: Quant
    ring_seconds: float = 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """Of one sequence: every stage once, and once round the ring."""
        stages = [stage.seconds_per_token for stage in self.stages]
        known = [seconds for seconds in stages if seconds is not None]
        return sum(known) + self.ring_seconds if len(known) == len(stages) else None


def split(
    shape: ModelShape,
    seats: Iterable[Seat],
    *,
    quant: Quant | str | None = None,
    max_len: int = 4096,
    max_batch: int = 1,
    rtt_seconds: Matrix | None = None,
    stages: int | None = None,
    overhead: float = 1.0,
    quants: Sequence[Quant] = QUANTS,
) -> Split:
    """Assign every layer to a device.

    Parameters
    ----------
    shape : ModelShape
    seats : list of Seat
        The devices there are; none is used beyond 90 % of its free memory.
    quant : Quant or str, optional
        None is the model's own dtype.
    max_len, max_batch : int
        Tokens of a sequence and sequences at once, for which caches are kept free.
    rtt_seconds : matrix, optional
        Round trips between seats, in their order; None where they do not matter or are not known.
    stages : int, optional
        Exactly so many devices; without it, the fewest that hold the model.
    overhead : float
        Weights count so many times over, where cache and activations take less than that.
    quants : list of Quant
        What may be advised where it does not fit.

    Raises
    ------
    DoesNotFit
        With by how much, and what would do.
    ModelError
        More stages than layers or devices.
    """
    demand = Demand(shape, read_quant(quant, shape), max_len, max_batch, overhead)
    return assign(demand, tuple(seats), rtt_seconds, stages, quants)


def assign(
    demand: Demand,
    seats: Sequence[Seat],
    rtt_seconds: Matrix | None = None,
    stages: int | None = None,
    quants: Sequence[Quant] = QUANTS,
) -> Split:
    """`split`, where the demand of the model is at hand."""
    paces = _paces(demand, seats)
    unit = min(paces, default=1.0) / _FINENESS
    places = [Place(seat.usable_bytes, round(pace / unit)) for seat, pace in zip(seats, paces, strict=True)]
    count = _count(demand, seats, places, stages, quants)
    most, order = arrange(demand, places, count, unit, rtt_seconds)
    pieces = zip(order, pairwise([0, *cut(demand, places, order, most)]), strict=True)
    made = tuple(_stage(demand, seats[at], start, end) for at, (start, end) in pieces)
    spares = tuple(seat for at, seat in enumerate(seats) if at not in order)
    return Split(made, spares, demand.quant, ring_seconds(order, rtt_seconds))


def _stage(demand: Demand, seat: Seat, start: int, end: int) -> Stage:
    pace = _known(demand, seat)
    seconds = None if pace is None else demand.work(start, end) * pace
    return Stage(seat, start, end, demand.room(start, end), seconds)


def _count(
    demand: Demand, seats: Sequence[Seat], places: Sequence[Place], stages: int | None, quants: Sequence[Quant]
) -> int:
    if stages is None:
        least = fewest(demand, places)
    elif not 1 <= stages <= demand.layers:
        raise ModelError(f"stages={stages} cannot be: {demand.shape.name} has {demand.layers} layers to share out.")
    elif stages > len(seats):
        raise ModelError(f"stages={stages} was asked for, but there are {len(seats)} devices; ask for fewer.")
    else:
        limit = demand.work(0, demand.layers) * max(place.rate for place in places)
        least = stages if find_order(demand, places, by_room(places)[:stages], stages, limit) else None
    if least is None:
        raise does_not_fit(demand, seats, stages, quants)
    return least


def _paces(demand: Demand, seats: Sequence[Seat]) -> list[float]:
    """Seconds for one parameter of work on each: measured, else bound by its memory, else as the others."""
    known = [_known(demand, seat) for seat in seats]
    there = [pace for pace in known if pace is not None]
    usual = median(there) if there else _GUESSED_SECONDS_PER_LAYER / demand.mean_work
    return [usual if pace is None else pace for pace in known]


def _known(demand: Demand, seat: Seat) -> float | None:
    if seat.seconds_per_layer:
        return seat.seconds_per_layer / demand.mean_work
    return demand.quant.bits / 8 / seat.bandwidth if seat.bandwidth else None
