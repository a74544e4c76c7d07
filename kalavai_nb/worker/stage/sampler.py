"""From logits to tokens: greedy, or drawn with a seed so that the same request gives the same tokens anywhere, again.

The random numbers of a token depend on the request's seed and the token's place alone, so a sequence that is replayed
on other devices after a failure goes on as it would have, as far as the logits are the same there (in 16 bits, what is
read at once rounds a little differently from what came token by token).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

Sampling = Mapping[str, Any]
# of log-probabilities: the token's own, then those of the likeliest ones, as (token, log-probability)
Logprobs = list[tuple[int, float]]

_PLACES = 1_000_003
_SEEDS = 1 << 63


class Wishes:
    """What the last stage knows of the sequences that it samples for: how, and how many tokens each has by now."""

    def __init__(self) -> None:
        self._wishes: dict[int, tuple[Sampling, int]] = {}

    def begin(self, fresh: Iterable[tuple[int, int, Sampling]]) -> None:
        """Sequences that begin here: row, tokens that were generated elsewhere, wish."""
        self._wishes.update({row: (wish, made) for row, made, wish in fresh})

    def drop(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._wishes.pop(row, None)

    def sample(self, rows: Sequence[int], logits: torch.Tensor) -> tuple[list[int], list[bool], list[Logprobs]]:
        """The next token of each row, whether that was its last, and log-probabilities."""
        wishes, made = zip(*(self._wishes[row] for row in rows), strict=True)
        tokens, logprobs = sample(logits, wishes, made)
        done = []
        for row, token, wish, count in zip(rows, tokens, wishes, made, strict=True):
            done.append(token in wish["eos"] or count + 1 >= wish["max_new_tokens"])
            self._wishes[row] = (wish, count + 1)
        return tokens, done, logprobs


def sample(logits: torch.Tensor, wishes: Sequence[Sampling], made: Sequence[int]) -> tuple[list[int], list[Logprobs]]:
    """The next token of each row, and log-probabilities for those that asked for them.

    ``logits`` is [B, V]; ``made`` says how many tokens each row has generated before.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, wish in enumerate(wishes):
        if wish["temperature"] > 0:
            tokens[row] = _draw(logits[row], wish, made[row])
    return tokens, [_logprobs(logits[row], tokens[row], wish) for row, wish in enumerate(wishes)]


def _draw(logits: torch.Tensor, wish: Sampling, made: int) -> int:
    """As transformers' ``generate`` does: temperature, top-k, top-p. On the CPU, where seeds always mean the same."""
    scores = logits.float().cpu()[None]
    nothing = torch.empty((1, 0), dtype=torch.long)
    scores = TemperatureLogitsWarper(float(wish["temperature"]))(nothing, scores)
    if wish["top_k"]:
        scores = TopKLogitsWarper(int(wish["top_k"]))(nothing, scores)
    if wish["top_p"] < 1:
        scores = TopPLogitsWarper(float(wish["top_p"]))(nothing, scores)
    generator = torch.Generator().manual_seed((int(wish["seed"]) * _PLACES + made) % _SEEDS)
    return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=generator))


def _logprobs(logits: torch.Tensor, token: int, wish: Sampling) -> Logprobs:
    """By the model's own distribution, before temperature and the rest."""
    if wish["logprobs"] is None:
        return []
    all_of_them = logits.float().log_softmax(-1)
    values, indices = all_of_them.topk(min(int(wish["logprobs"]), len(all_of_them)))
    return [(token, float(all_of_them[token])), *zip(indices.tolist(), values.tolist(), strict=True)]
