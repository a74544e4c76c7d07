"""What one name of a search space ranges over: values to choose from, or numbers between bounds. Knows no Optuna."""

from __future__ import annotations

import contextlib
import math
import pickle
import random
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Number, Real
from typing import Any

from kalavai_nb.errors import OptionError


class Choices:
    """Any values, hashable or not, all equally likely. A constant is one choice."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = tuple(values)
        self.size = len(self.values)

    def value(self, position: int) -> Any:
        """The value at this position, from 0 to ``size - 1``."""
        return self.values[position]

    def position(self, value: Any) -> int:
        """The position of the first value that equals this one. Raises LookupError where there is none."""
        for position, own in enumerate(self.values):
            if _same(own, value):
                return position
        raise LookupError

    def find(self, value: Any) -> Any:
        """The own value that equals this one. Raises LookupError where there is none."""
        return self.values[self.position(value)]

    def draw(self, rng: random.Random) -> Any:
        """One value, by chance."""
        return rng.choice(self.values)

    def __repr__(self) -> str:
        return reprlib.repr(list(self.values))


@dataclass(frozen=True, repr=False)
class Numbers:
    """The numbers from ``low`` to ``high``, both included: all, or every ``step``; integers where ``whole``.

    With ``log``, as likely between 1 and 10 as between 10 and 100. Raises OptionError where there are no such numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not _is_real(bound) or not math.isfinite(bound):
                raise OptionError(f"{self!r} cannot be meant: wanted two finite numbers, low and high; got {bound!r}.")
        for name, bound in (("low", self.low), ("high", self.high)):
            object.__setattr__(self, name, int(bound) if self.whole else float(bound))
        if self.low >= self.high:
            raise OptionError(f"{self!r} has nothing in it: wanted low < high. Swap the two, or give a list of values.")
        if self.log and self.low <= 0:
            raise OptionError(
                f"{self!r} cannot be meant: wanted a low above 0, where logarithms begin. "
                "Take a small one, such as 1e-6, or kn.uniform."
            )

    @property
    def size(self) -> int | None:
        """How many numbers these are; None where there is no end of them."""
        # a step that fits but for rounding counts as fitting
        return None if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def value(self, position: int) -> float:
        """The number at this position, from 0 to ``size - 1``."""
        assert self.step is not None
        return min(self.low + position * self.step, self.high)

    def position(self, value: Any) -> int:
        """The position of this number. Raises LookupError where it is none of these."""
        self._check(value)
        assert self.step is not None
        position = int((value - self.low) / self.step + 0.5)
        if not math.isclose(self.value(position), value, rel_tol=1e-12, abs_tol=1e-9 * self.step):
            raise LookupError
        return position

    def find(self, value: Any) -> float:
        """The own number that equals this one. Raises LookupError where there is none."""
        self._check(value)
        return float(value) if self.step is None else self.value(self.position(value))

    def draw(self, rng: random.Random) -> float:
        """One number, by chance."""
        if self.size is not None and not self.log:
            return self.value(rng.randrange(self.size))
        if not self.log:
            return min(rng.uniform(self.low, self.high), self.high)
        # an integer stands for all that is rounded to it, or else the two ends would come half as often
        spare = 0.5 * self.whole
        number = math.exp(rng.uniform(math.log(self.low - spare), math.log(self.high + spare)))
        return min(max(round(number) if self.whole else number, self.low), self.high)

    def _check(self, value: Any) -> None:
        if not _is_real(value) or not self.low <= value <= self.high:
            raise LookupError

    def __repr__(self) -> str:
        low, high = (f"{bound:g}" if isinstance(bound, float) else repr(bound) for bound in (self.low, self.high))
        if self.whole:
            return f"the integers {low} to {high}" + (f" in steps of {self.step}" if self.step != 1 else "")
        step = "" if self.step is None else f", step={self.step:g}"
        return f"{'loguniform' if self.log else 'uniform'}({low}, {high}{step})"


Domain = Choices | Numbers


def _same(own: Any, other: Any) -> bool:
    """Whether two values are one and the same choice: True is not 1, NaN is NaN, and arrays are equal as wholes."""
    if own is other:
        return True
    if isinstance(own, (Number, str)) and isinstance(other, (Number, str)):
        both_nan = own != own and other != other
        return isinstance(own, bool) == isinstance(other, bool) and bool(own == other or both_nan)
    if type(own) is not type(other) or getattr(own, "shape", None) != getattr(other, "shape", None):
        return False
    # a comparison is the user's code, and containers of arrays cannot be compared
    with contextlib.suppress(Exception):
        equal = own == other
        if equal.all() if hasattr(equal, "all") else equal:
            return True
    # objects that compare by identity come home from a journal as copies
    with contextlib.suppress(Exception):
        return pickle.dumps(own) == pickle.dumps(other)
    return False


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
