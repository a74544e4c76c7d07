"""What a model asks of devices, at every quantisation, now and in some years."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import OptionError
from kalavai_nb.planner.cards import GB, USUAL, read_devices
from kalavai_nb.planner.demand import Demand
from kalavai_nb.planner.growth import Outlook, Rates, read_rates, read_years
from kalavai_nb.planner.links import Links
from kalavai_nb.planner.quants import QUANTS, Quant, native, plain_name, read_quant
from kalavai_nb.planner.ring import Matrix
from kalavai_nb.planner.rows import Row, count
from kalavai_nb.planner.seats import USABLE, Seat
from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.shortfall import DoesNotFit, does_not_fit
from kalavai_nb.planner.sources import shape_of
from kalavai_nb.planner.split import Split, Stage

if TYPE_CHECKING:
    import pandas as pd

# weights and what is not counted one by one
OVERHEAD = 1.2
# where nobody says which devices
USUAL_SIZES_GB = (8, 12, 16, 24, 40, 48, 80)
_DEFAULT_GB = 24


class Counts(dict[str, "int | None"]):
    """{quantisation: number}, which also knows the other names of a quantisation, such as "int4"."""

    def __missing__(self, name: str) -> int | None:
        if (known := plain_name(name)) is None or known not in self:
            raise KeyError(name)
        return self[known]


@dataclass(frozen=True)
class Plan:
    """The answer of `plan`: printed and shown it says all of it, ``table()`` is a DataFrame, ``to_dict()`` plain JSON.

    Attributes
    ----------
    fits : bool
        Whether the model, at the quantisation that was asked for, fits on the devices that there are.
    stages : tuple of Stage
        Where its layers would be; empty where it does not fit.
    devices_needed : dict
        {quantisation: how many devices, or None where no number of them would do}.
    outlook : Outlook or None
        What ``years=`` asked for.
    """

    shape: ModelShape
    quant: Quant
    seats: tuple[Seat, ...]
    rows: tuple[Row, ...]
    split: Split | None
    shortfall: DoesNotFit | None
    outlook: Outlook | None
    max_len: int
    max_batch: int
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it fits at ``quant``."""
        return self.split is not None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Device, layers and memory of each stage, in the order of the ring."""
        return self.split.stages if self.split else ()

    @property
    def devices_needed(self) -> dict[str, int | None]:
        """How many devices at each quantisation, in whole layers."""
        return Counts({row.quant.name: row.devices for row in self.rows})

    @property
    def row(self) -> Row:
        """What is needed at ``quant``."""
        return next(row for row in self.rows if row.quant.name == self.quant.name)

    def table(self) -> pd.DataFrame:
        """The quantisations as a DataFrame, one row each."""
        import pandas as pd

        from kalavai_nb.planner.record import quant_records

        return pd.DataFrame(quant_records(self))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        from kalavai_nb.planner.record import plan_record

        return plan_record(self)

    def __repr__(self) -> str:
        from kalavai_nb.planner.render import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        from kalavai_nb.planner.render import plan_html

        return plan_html(self)


def plan(
    model: Any,
    devices: Any = None,
    *,
    quant: Quant | str | None = None,
    years: float = 0,
    model_growth: float | None = None,
    gpu_growth: float | None = None,
    preset: str | None = None,
    max_len: int = 4096,
    max_batch: int = 1,
    rtt_seconds: float | Matrix | None = None,
    link_bits_per_second: float | None = None,
    overhead: float = OVERHEAD,
) -> Plan:
    """How many of these devices a model needs, where its layers would be, how fast it could be, and in some years.

    Nothing is loaded and nothing is measured: this is arithmetic, and says what it assumes.

    Parameters
    ----------
    model : str, Path, dict or config
        A folder with a ``config.json``, a GGUF file, an id of the hub, or a size such as ``"70B"``.
    devices : list, optional
        Cards by name (``"RTX 3060 x2"``), sizes in GB (24), `Device`. Without it, cards of 24 GB and others by size.
    quant : str, optional
        ``"int8"``, ``"int4"``, ``"Q6_K"``, …: bits per weight are those of real files. None is the model's own dtype;
        ``"auto"`` the most bits that fit.
    years : float
        Also say how many it would take in so many years.
    model_growth, gpu_growth : float, optional
        By which factor models, and the memory of cards, grow in a year; without them, those of ``preset``.
    preset : str, optional
        ``"parameters"`` (default), ``"article"``, ``"article-text"``, ``"compute-optimal"`` or ``"flops"``; all of them
        are shown.
    max_len, max_batch : int
        Tokens of a sequence and sequences at once, for which the KV cache is counted.
    rtt_seconds : float or matrix, optional
        Round trips between devices; 20 ms assumed.
    link_bits_per_second : float, optional
        What a link between devices carries; 100 Mbit/s assumed.
    overhead : float
        Weights count so many times over, for what is not counted one by one.

    Raises
    ------
    OptionError
        A device, a rate or a number cannot be meant.
    ModelError
        There is no such model, or no such quantisation.
    MissingExtra
        The exact shape of a model needs transformers; a size such as ``"70B"`` does not.
    """
    _check(max_len, max_batch, overhead)
    years, rates = read_years(years), read_rates(preset, model_growth, gpu_growth)
    seats = read_devices([_DEFAULT_GB] if devices is None else devices)
    links = Links(rtt_seconds, link_bits_per_second)
    links.check(len(seats))
    assumptions = _assumptions(devices, seats, links, overhead)
    seats = tuple(replace(seat, bandwidth=seat.bandwidth or USUAL.bandwidth_gb * GB) for seat in seats)
    shape = shape_of(model)
    auto = quant == "auto"
    chosen = native(shape) if auto else read_quant(quant, shape)
    demands = [Demand(shape, each, max_len, max_batch, overhead) for each in _quants(shape, chosen)]
    rows = tuple(count(demand, seats, links, USUAL_SIZES_GB if devices is None else ()) for demand in demands)
    if auto:
        chosen = next((row.quant for row in rows if row.fits), rows[-1].quant)
    row, demand = next((row, demand) for row, demand in zip(rows, demands, strict=True) if row.quant == chosen)
    return Plan(
        shape=shape,
        quant=chosen,
        seats=seats,
        rows=rows,
        split=row.split if row.fits else None,
        shortfall=None if row.fits else does_not_fit(demand, seats),
        outlook=_outlook(row, years, rates),
        max_len=max_len,
        max_batch=max_batch,
        assumptions=tuple(filter(None, [shape.assumed and f"the model is {shape.assumed}", *assumptions])),
    )


def _outlook(row: Row, years: float, rates: Rates) -> Outlook | None:
    """Counted on from what it takes now; from memory alone where no number of whole devices does."""
    now = row.devices or row.at_least
    return Outlook(years, now, rates) if years and now else None


def _check(max_len: int, max_batch: int, overhead: float) -> None:
    for name, value in (("max_len", max_len), ("max_batch", max_batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(f"{name}={value!r} cannot be meant: wanted a whole number, 1 or more.")
    if not 1 <= overhead <= 10:
        raise OptionError(f"overhead={overhead!r} cannot be meant: wanted a factor such as 1.2.")


def _quants(shape: ModelShape, chosen: Quant) -> list[Quant]:
    """Those that are always shown and the one that was asked for, most bits first."""
    shown = {quant.name: quant for quant in (*QUANTS, native(shape), chosen)}
    return sorted(shown.values(), key=lambda quant: -quant.bits)


def _assumptions(devices: Any, seats: Sequence[Seat], links: Links, overhead: float) -> list[str]:
    """What nobody said and nothing measured, in sentences."""
    several = len(seats) > 1 or devices is None
    guessed = [seat for seat in seats if not seat.seconds_per_layer]
    unknown = any(not seat.bandwidth for seat in guessed)
    return [
        *([f"no devices were named: counted for cards of {_DEFAULT_GB} GB"] if devices is None else []),
        f"{100 * USABLE:g} % of free memory is used; weights count × {overhead:g} for what is not counted one by one",
        *(["memory bandwidth is what the cards' makers say"] if any(seat.bandwidth for seat in guessed) else []),
        *([f"unknown memory bandwidth is {USUAL.bandwidth_gb} GB/s, as that of an {USUAL.name}"] if unknown else []),
        *([links.assumed] if several and links.assumed else []),
    ]
