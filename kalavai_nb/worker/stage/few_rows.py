"""Linear layers on a CPU, for the few rows of a step: in whichever form is fastest there.

For one to eight rows in float32, ``F.linear`` takes up to three times as long on some CPUs as the same product the
other way round, depending on the shape (measured on an AMD EPYC with torch 2.13: 576 → 1536 at 2 rows 20 against 7 ms
for 130 MB of weights). So each form is timed where it runs, once for each shape and number of rows. Both are float32
sums of the same products. Other types stay as they are: they are fast, and would round differently.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear

MOST_ROWS = 8
# another form must be so many times faster, so that chance does not choose
MARGIN = 1.2
# weights that are timed together, so that they come from memory and not from a cache
TIMED_BYTES = 48 << 20
ROUNDS = 3

# [B, K] and [N, K] to [B, N]
Form = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight @ x.T).T


def _turned_as_two(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One row as two: the product of a matrix with two columns beats the one with a vector."""
    return (weight @ x.repeat(2, 1).T).T[:1]


def quicken(model: nn.Module) -> None:
    """Let linear layers of the model that are in float32 on a CPU choose their form; what they compute stays."""
    weights: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
    layers = [m for m in model.modules() if type(m) is nn.Linear and _is_plain(m.weight)]
    for layer in layers:
        weights[layer.weight.shape].append(layer.weight)
    choices = {shape: _Choice(alike) for shape, alike in weights.items()}
    for layer in layers:
        # an attribute of the instance: its class, hooks and the model's own forward are untouched
        layer.forward = functools.partial(_forward, layer, choices[layer.weight.shape])  # type: ignore[method-assign]


def _is_plain(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and type(weight) is nn.Parameter


def _forward(layer: nn.Linear, choice: _Choice, x: torch.Tensor) -> torch.Tensor:
    rows = x.numel() // x.shape[-1]
    form = choice.of(rows) if 0 < rows <= MOST_ROWS else None
    if form is None:
        return linear(x, layer.weight, layer.bias)
    out = form(x.reshape(rows, -1), layer.weight).reshape(*x.shape[:-1], -1)
    return out if layer.bias is None else out + layer.bias


class _Choice:
    """Which form for how many rows, for weights of one shape; None is ``F.linear``."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        count = -(-TIMED_BYTES // (weights[0].numel() * weights[0].element_size()))
        self._weights = weights[:count]
        self._chosen: dict[int, Form | None] = {}

    def of(self, rows: int) -> Form | None:
        if rows not in self._chosen:
            other = _turned_as_two if rows == 1 else _turned
            x = torch.ones((rows, self._weights[0].shape[1]))
            self._chosen[rows] = other if MARGIN * self._seconds(other, x) < self._seconds(linear, x) else None
        return self._chosen[rows]

    def _seconds(self, form: Form, x: torch.Tensor) -> float:
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for weight in self._weights:
                form(x, weight)
            seconds.append(time.perf_counter() - started)
        return min(seconds)
