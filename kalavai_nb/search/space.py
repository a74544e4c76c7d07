"""What a sweep searches: a dict of what each name ranges over, read and checked. Knows no Optuna."""

from __future__ import annotations

import difflib
import math
import random
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.search.domains import Choices, Domain, Numbers

_KINDS = "a list, a range, kn.uniform(low, high), kn.loguniform(low, high), an Optuna distribution, or a number or text"


def uniform(low: float, high: float) -> Numbers:
    """All numbers from ``low`` to ``high``, equally likely. Raises OptionError for bounds that cannot be meant."""
    return Numbers(low, high)


def loguniform(low: float, high: float) -> Numbers:
    """All numbers from ``low`` to ``high``, each power of ten equally likely, as learning rates want it.

    Raises OptionError for bounds that cannot be meant, such as a ``low`` of 0.
    """
    return Numbers(low, high, log=True)


class Space:
    """What a sweep searches: ``{"lr": kn.loguniform(1e-5, 1e-1), "layers": [2, 4], "epochs": 10}``, checked.

    A list, tuple or NumPy array is values to choose from, a ``range`` its integers; one number, text, bool or None is a
    constant; Optuna's distributions are what they are. Raises OptionError for all else.
    """

    def __init__(self, space: Mapping[str, Any]) -> None:
        if not isinstance(space, Mapping):
            hint = " A list of whole configs is for pool.map." if isinstance(space, (list, tuple)) else ""
            raise OptionError(
                "a search space is wanted as a dict of names, such as {'lr': kn.loguniform(1e-5, 1e-1)}; "
                f"got {_what(space)}.{hint}"
            )
        if not space:
            raise OptionError("the search space is empty: give it a name to search, such as {'layers': [2, 4, 8]}.")
        for name in space:
            if not isinstance(name, str) or not name:
                raise OptionError(f"the names of a search space are texts; got {name!r}. Write them as 'lr'.")
        self.domains = {name: _read(name, kind) for name, kind in space.items()}

    @property
    def varying(self) -> dict[str, Domain]:
        """The names that have more than one value, which a search has to learn about."""
        return {name: domain for name, domain in self.domains.items() if domain.size != 1}

    @property
    def grid_size(self) -> int:
        """The number of combinations. Raises OptionError that names what has no end of values."""
        endless = [f"{name} is {domain!r}" for name, domain in self.domains.items() if domain.size is None]
        if endless:
            said, fix = " and ".join(endless), "it a list" if len(endless) == 1 else "them lists"
            raise OptionError(f"search='grid' needs lists or ranges; {said}. Give {fix}, or use search='random'.")
        return math.prod(domain.size or 0 for domain in self.domains.values())

    def grid(self) -> Iterator[dict[str, Any]]:
        """All combinations; the last name varies fastest. Raises OptionError as `grid_size` does."""
        return (self.grid_config(position) for position in range(self.grid_size))

    def grid_config(self, position: int) -> dict[str, Any]:
        """The combination at this position of the grid."""
        values = {}
        for name, domain in reversed(self.domains.items()):
            assert domain.size is not None
            position, digit = divmod(position, domain.size)
            values[name] = domain.value(digit)
        return dict(reversed(values.items()))

    def grid_position(self, config: Mapping[str, Any]) -> int:
        """Where this config is in the grid, the first of equal places. Raises LookupError where it is not in it."""
        place = 0
        for name, domain in self.domains.items():
            place = place * (domain.size or 0) + domain.position(config[name])
        return place

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """One config, each name by itself."""
        return {name: domain.draw(rng) for name, domain in self.domains.items()}

    def check(self, config: Any, what: str = "the config") -> dict[str, Any]:
        """The config in the space's own order and values, its constants filled in.

        Raises OptionError, beginning with ``what``, where a name is missing or unknown or a value is not in the space.
        """
        if not isinstance(config, Mapping):
            raise OptionError(f"{what} is wanted as a dict of {', '.join(self.domains)}; got {_what(config)}.")
        if unknown := [name for name in config if name not in self.domains]:
            near = did_you_mean(unknown[0], self.domains)
            raise OptionError(
                f"{what} has {unknown[0]!r}, which the space has not.{near} Its names are {', '.join(self.domains)}."
            )
        if missing := [name for name in self.varying if name not in config]:
            raise OptionError(
                f"{what} has no {', '.join(missing)}: give a value for each of {', '.join(self.varying)}."
            )
        found = {}
        for name, domain in self.domains.items():
            try:
                found[name] = domain.find(config[name]) if name in config else domain.value(0)
            except LookupError:
                raise OptionError(
                    f"{what} has {name}={reprlib.repr(config[name])}, which is not in {domain!r}. "
                    "Choose a value that is, or widen the space."
                ) from None
        return found


def did_you_mean(word: Any, words: Iterable[str]) -> str:
    """A sentence with the nearest of these words, after a space; empty where none is near."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _read(name: str, kind: Any) -> Domain:
    if isinstance(kind, Numbers):
        return kind
    if kind is None or isinstance(kind, (Number, str)):
        return Choices([kind])
    if isinstance(kind, (list, tuple, range)):
        if not kind:
            raise OptionError(f"{name}={kind!r} has nothing to choose from: give it one value or more.")
        return _integers(kind[:: 1 if kind.step > 0 else -1]) if isinstance(kind, range) else Choices(kind)
    numpy, optuna = sys.modules.get("numpy"), sys.modules.get("optuna")
    if numpy and isinstance(kind, numpy.ndarray):
        # numbers of Python's own print well and are what JSON and Optuna take
        return _read(name, kind.tolist() if kind.ndim < 2 else list(kind))
    if optuna and isinstance(kind, optuna.distributions.BaseDistribution):
        return _of_optuna(kind)
    raise OptionError(f"{name}= cannot be {_what(kind)}: wanted {_KINDS}. {_advice(name, kind)}")


def _of_optuna(kind: Any) -> Domain:
    if hasattr(kind, "choices"):
        return Choices(kind.choices)
    if isinstance(kind.low, int):
        return _integers(range(kind.low, kind.high + 1, kind.step), kind.log)
    return Numbers(kind.low, kind.high, kind.log, kind.step) if kind.low < kind.high else Choices([kind.low])


def _integers(rising: range, log: bool = False) -> Domain:
    low, high = rising[0], rising[-1]
    return Numbers(low, high, log, rising.step, whole=True) if low < high else Choices([low])


def _advice(name: str, kind: Any) -> str:
    if isinstance(kind, (set, frozenset)):
        return f"A set has no order, which a search needs: write {name}=[…]."
    if hasattr(kind, "rvs"):
        return f"Draw from it yourself, {name}=list(….rvs(20)), or write its bounds with kn.uniform."
    if isinstance(kind, Iterator):
        return f"Write out what it gives: {name}=list(…)."
    if hasattr(kind, "tolist"):
        return f"Write {name}=….tolist()."
    return f"To have it as it is in every config, put it in a list of one: {name}=[…]."


def _what(value: Any) -> str:
    """A value in a few words: its type, and how it is written where that is short."""
    article = "an" if type(value).__name__[0].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__} ({reprlib.repr(value)})"
