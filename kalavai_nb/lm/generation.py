"""What is asked of a model, and what comes of it: plain data."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypedDict

from kalavai_nb.errors import ModelError, OptionError
from kalavai_nb.options import nearest

MAX_NEW_TOKENS = 256
MOST_LOGPROBS = 20
MOST_TOP_K = 1 << 31
# what is colder is greedy: dividing by it would leave nothing of the logits
COLDEST = 1e-4
# a text, token ids, or a conversation
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token with the logarithm of its probability by the model's own distribution (natural, ≤ 0).

    ``top`` are the likeliest tokens of its place, as (token id, text, log-probability).
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """What came of one prompt.

    ``token_ids`` are the generated ones, with the end-of-sequence token where there was one. ``finish_reason`` is
    "stop" (the model's own end, or a stop string), "length" (``max_new_tokens``) or "cancelled". ``prompt_tokens`` is
    how many the prompt had; ``logprobs`` has one for each generated token, or none where they were not asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Delta:
    """A piece of a generation as it comes: text that is final, and its tokens. The last has a ``finish_reason``."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ``temperature=0`` is greedy. ``eos`` are the tokens that end a sequence.

    Without ``max_new_tokens`` there are as many as is usual, or as there is room for: see `fitted`.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    eos: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What the stage that samples needs to know; stop strings are minded where there is text."""
        fields = asdict(self)
        del fields["stop"]
        return fields

    def fitted(self, prompt_tokens: int, max_len: int) -> Sampling:
        """For a prompt of so many tokens: where nobody said how many are wanted, no more than there is room for.

        Raises ModelError where there is no room for what is wanted, which is at least one.
        """
        room = max_len - prompt_tokens
        most = max(1, min(MAX_NEW_TOKENS, room)) if self.max_new_tokens is None else self.max_new_tokens
        if most > room:
            raise ModelError(
                f"the prompt has {prompt_tokens} tokens, and with max_new_tokens={most} that is more than "
                f"max_len={max_len}. Shorten it, ask for fewer tokens, or load it with a larger max_len."
            )
        return replace(self, max_new_tokens=most)

    def of_row(self, index: int) -> Sampling:
        """For one prompt of a list: equal prompts get different random numbers."""
        return replace(self, seed=(self.seed + 7919 * index) % (1 << 62))


class Options(TypedDict, total=False):
    """How tokens may be asked to be chosen: the options of `ShardedLM.generate`."""

    max_new_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | bool | None


def check_names(given: Iterable[str], others: Sequence[str] = ()) -> None:
    """Raise OptionError for a name that is none of `Options`, nor of the ``others`` of the same call."""
    names = (*Options.__annotations__, *others)
    for name in given:
        if name not in names:
            raise OptionError(
                f"there is no option {name!r}.{nearest(name, names)} The options are: {', '.join(names)}."
            )


def read_sampling(
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: int | bool | None = None,
    eos: Sequence[int] = (),
) -> Sampling:
    """Check what a person asked for. Without a seed, one is drawn, and kept for replays. Raises OptionError."""
    if max_new_tokens is not None:
        _check("max_new_tokens", max_new_tokens, int, 1, None)
    _check("temperature", temperature, float, 0, 100)
    _check("top_p", top_p, float, 0, 1)
    _check("top_k", top_k or 0, int, 0, MOST_TOP_K)
    if seed is not None:
        _check("seed", seed, int, 0, 1 << 62)
    wanted = int(logprobs) - 1 if isinstance(logprobs, bool) else logprobs
    if wanted is not None and wanted >= 0:
        _check("logprobs", wanted, int, 0, MOST_LOGPROBS)
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(each, str) and each for each in stops):
        raise OptionError(f"stop= wants a text or a list of texts, none of them empty; got {stop!r}.")
    return Sampling(
        max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
        temperature=float(temperature) if temperature >= COLDEST else 0.0,
        top_p=float(top_p),
        top_k=int(top_k or 0),
        seed=secrets.randbelow(1 << 31) if seed is None else int(seed),
        stop=stops,
        logprobs=None if wanted is None or wanted < 0 else int(wanted),
        eos=tuple(eos),
    )


def _check(name: str, value: Any, kind: type, least: float, most: float | None) -> None:
    is_number = isinstance(value, int) or (kind is float and isinstance(value, float))
    if not is_number or isinstance(value, bool) or not least <= value <= (value if most is None else most):
        what = "a whole number" if kind is int else "a number"
        bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise OptionError(f"{name}= wants {what} {bounds}; got {value!r}.")
