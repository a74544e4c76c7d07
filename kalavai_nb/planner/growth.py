"""The years to come: models grow, cards grow, and what one asks of the other grows by the ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kalavai_nb.errors import OptionError


@dataclass(frozen=True)
class Rates:
    """By how much models and cards grow in a year, and where that is from."""

    name: str
    model: float
    gpu: float
    source: str

    def ratio(self, years: float) -> float:
        """How much more a model asks of a card after so many years."""
        return math.pow(self.model / self.gpu, years)

    def devices(self, now: int, years: float) -> int:
        """How many cards of that time the model of that time needs. Rounded up last: what is rounded first, grows."""
        # a ratio such as 2.0 may come as 2.0000000000000004
        return math.ceil(round(now * self.ratio(years), 9))

    def formula(self, now: int, years: float) -> str:
        """The arithmetic, written out."""
        ratio = self.ratio(years)
        step = f"⌈{now} × ({self.model:g} / {self.gpu:g})^{years:g}⌉ = ⌈{now} × {ratio:.2f}⌉"
        return f"{step} = {self.devices(now, years):,}"


PRESETS = {
    rates.name: rates
    for rates in (
        Rates("article", 4.0, 1.3, "the article as it is computed; its 4.0 is training compute, not size"),
        Rates("article-text", 4.1, 1.3, "the article as it is written"),
        Rates("parameters", 2.8, 1.189, "parameters (Epoch) against GPU memory, which doubles in 4 years"),
        Rates("compute-optimal", 2.02, 1.189, "size that goes with compute (the root of 4.1) against GPU memory"),
        Rates("flops", 2.8, 1.3, "parameters against FLOPS: for time, not for what fits"),
    )
}
ARTICLE_NOTE = (
    "The article behind this project makes 2 GPUs for a 30B model into 550 in five years: 2 × (4.0 / 1.3)^5 is 2 × "
    "275.79 with the fraction cut off, and 552 rounded up. Its text says 4.1 a year, which gives 625. Both are the "
    "growth of training compute, not of size: parameters grow 2.8 times a year and GPU memory 1.19 times, which makes "
    "145 of 2."
)


def read_rates(preset: str | None, model_growth: float | None, gpu_growth: float | None) -> Rates:
    """The preset of a name, with what else is given put in its place. Raises OptionError."""
    name = "parameters" if preset is None else preset
    if name not in PRESETS:
        raise OptionError(f"there is no preset {name!r}: wanted one of {', '.join(PRESETS)}.")
    for option, value in (("model_growth", model_growth), ("gpu_growth", gpu_growth)):
        if value is not None and not 0 < value < 1000:
            raise OptionError(f"{option}={value} cannot be meant: wanted a factor a year, such as 2.8.")
    chosen = PRESETS[name]
    if model_growth is None and gpu_growth is None:
        return chosen
    return Rates("yours", model_growth or chosen.model, gpu_growth or chosen.gpu, f"yours, else as {name}")


def read_years(years: float) -> float:
    """Raises OptionError for what is no number of years."""
    if not isinstance(years, (int, float)) or isinstance(years, bool) or not 0 <= years <= 30:
        raise OptionError(f"years={years!r} cannot be meant: wanted 0 to 30.")
    return years


@dataclass(frozen=True)
class Outlook:
    """How many devices in some years, at the rates that were asked for and at all others."""

    years: float
    now: int
    chosen: Rates

    @property
    def all(self) -> tuple[Rates, ...]:
        """The chosen rates first."""
        others: Iterable[Rates] = PRESETS.values()
        return (self.chosen, *(rates for rates in others if rates != self.chosen))

    @property
    def range(self) -> tuple[int, int]:
        """The least and the most that any of the rates gives."""
        counts = [rates.devices(self.now, self.years) for rates in self.all]
        return min(counts), max(counts)
