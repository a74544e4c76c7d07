"""How Optuna holds a space, and which of its samplers and pruners our names mean. Importing this needs Optuna."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from optuna import pruners, samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kalavai_nb.search.domains import Domain, Numbers

_LABEL_CHARACTERS = 60


class Param:
    """How Optuna holds one name of the space: numbers as they are, choices as they are or as texts."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._labels: list[Any] = []
        self.distribution: BaseDistribution
        if not isinstance(domain, Numbers):
            self._labels = _labels(domain.values)
            self.distribution = CategoricalDistribution(self._labels)
        elif domain.whole:
            self.distribution = IntDistribution(int(domain.low), int(domain.high), domain.log, int(domain.step or 1))
        else:
            self.distribution = FloatDistribution(domain.low, domain.high, domain.log, domain.step)

    def encode(self, value: Any) -> Any:
        return self._labels[self._domain.position(value)] if self._labels else value

    def decode(self, param: Any) -> Any:
        return self._domain.value(self._labels.index(param)) if self._labels else param


def make_sampler(sampler: str | samplers.BaseSampler, seed: int) -> samplers.BaseSampler:
    """Optuna's sampler of this name; an object is itself.

    "cmaes" moves numbers only and draws choices by chance. "random" stands behind searches of ours.
    """
    seed %= 2**32
    if sampler == "tpe":
        # trials that run count as bad ones, or else many at a time are sampled alike; the default since Optuna 5
        return samplers.TPESampler(seed=seed, constant_liar=True)
    if sampler == "gp":
        return samplers.GPSampler(seed=seed)
    if sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed) if isinstance(sampler, str) else sampler


def make_pruner(stop: str | pruners.BasePruner | None) -> pruners.BasePruner:
    """Optuna's pruner of this name; an object is itself, and None prunes nothing. Steps are what trials report, from 0.

    - "asha" lets the best quarter go on at the steps 1, 4, 16, 64 and so on, and never waits for other trials: Li et
      al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, with their reduction factor. While fewer
      than eight have come to a step, only the best so far goes on.
    - "median" prunes a trial whose best report is worse than the median at that step of the complete trials, once there
      are five: Golovin et al., Google Vizier, KDD 2017.
    - "hyperband" is ASHA with several first steps side by side, by thirds, which spares late bloomers: Li et al., JMLR
      2018. It prunes nothing before the first trial is complete, which tells it how many steps there are.
    """
    if stop == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
    if stop == "median":
        return pruners.MedianPruner(n_startup_trials=5)
    if stop == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource="auto", reduction_factor=3)
    return stop if isinstance(stop, pruners.BasePruner) else pruners.NopPruner()


def _labels(values: Sequence[Any]) -> list[Any]:
    """What stands for these choices in Optuna: themselves where it takes them and tells them apart, or else texts."""
    plain = [_plain(value) for value in values]
    if _NOT_PLAIN not in plain and len(set(plain)) == len(plain):
        return plain
    texts = [_text(value) for value in values]
    return texts if len(set(texts)) == len(texts) else [f"{n}: {text}" for n, text in enumerate(texts)]


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """This value as one of the types that Optuna takes; numbers of NumPy's become Python's."""
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) and math.isfinite(value) else _NOT_PLAIN


def _text(value: Any) -> str:
    """A choice in one short line, without the addresses that would be others in the next session."""
    text = " ".join(re.sub(" at 0x[0-9a-f]+", "", getattr(value, "__name__", repr(value))).split())
    return text if len(text) <= _LABEL_CHARACTERS else text[: _LABEL_CHARACTERS - 1] + "…"
