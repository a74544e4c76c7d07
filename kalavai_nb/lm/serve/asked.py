"""What a client asks for, read from the body of its request and checked before anything is generated."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from kalavai_nb.lm.generation import MOST_LOGPROBS
from kalavai_nb.lm.serve.faults import refused
from kalavai_nb.lm.serve.fields import Fields, wants
from kalavai_nb.lm.serve.messages import read_messages
from kalavai_nb.lm.text import is_token_ids

MOST_CHOICES = 128
MOST_PROMPTS = 2048
MOST_STOPS = 4
COMPLETION_TOKENS = 16
SEEDS = 1 << 62
LARGE = 1 << 62
# colder than this is greedy in all but name, and divides logits to infinity
LEAST_TEMPERATURE = 1e-4

# they are about accounts and caches of OpenAI's, and change nothing in what is generated
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_NO_TOOLS = ((), "this server calls no tools")
_NO_PENALTIES = ((0,), "repeated tokens are not penalised here")
IMPOSSIBLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "logit_bias": (({},), "single tokens cannot be made likelier here"),
    "presence_penalty": _NO_PENALTIES,
    "frequency_penalty": _NO_PENALTIES,
    "service_tier": (("auto", "default"), "there is one tier"),
}
IMPOSSIBLE_IN_CHAT = {
    "tools": (([],), _NO_TOOLS[1]),
    "tool_choice": (("none", "auto"), _NO_TOOLS[1]),
    "parallel_tool_calls": ((True, False), _NO_TOOLS[1]),
    "functions": (([],), _NO_TOOLS[1]),
    "function_call": (("none", "auto"), _NO_TOOLS[1]),
    "response_format": (({"type": "text"},), "answers are free text, held to no format"),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "prediction": ((), "nothing is made of a predicted output"),
    "reasoning_effort": (("none",), "how much the model reasons is not for this server to set"),
    "verbosity": (("medium",), "how much the model says is not for this server to set"),
    "store": ((False,), "nothing is stored"),
    "web_search_options": ((), "this server does not search"),
}
IMPOSSIBLE_IN_TEXT = {
    "echo": ((False,), "the prompt is not given back"),
    "suffix": (("",), "text is generated at the end only"),
}


@dataclass(frozen=True)
class Asked:
    """A request. ``prompts`` are what `encode` takes; each is to be answered ``choices`` times, by seeds of their own.

    ``sampling`` are options of `ShardedLM.submit`, without ``seed`` and ``max_new_tokens``; ``max_tokens`` None is all
    there is room for.
    """

    model: Any
    prompts: list[Any]
    choices: int
    max_tokens: int | None
    seed: int
    sampling: dict[str, Any]
    stream: bool
    include_usage: bool

    def seed_of(self, index: int) -> int:
        """As `ShardedLM.generate` gives the prompts of a list theirs, so that both give the same."""
        return (self.seed + 7919 * index) % SEEDS


def read_chat(body: Any) -> Asked:
    """The body of POST /v1/chat/completions."""
    fields = Fields(body)
    fields.refuse(IMPOSSIBLE_IN_CHAT)
    prompts = [read_messages(fields.take("messages"))]
    wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs", None, 0, MOST_LOGPROBS)
    if top is not None and not wanted:
        raise refused("`top_logprobs` goes with `logprobs: true` only.", "top_logprobs", "invalid_value")
    older, newer = fields.whole("max_tokens", None, 1, LARGE), fields.whole("max_completion_tokens", None, 1, LARGE)
    if older and newer and older != newer:
        raise refused("`max_tokens` is the old name of `max_completion_tokens`; set one of them.", "max_tokens")
    return _asked(fields, prompts, newer or older, (top or 0) if wanted else None)


def read_text(body: Any) -> Asked:
    """The body of POST /v1/completions."""
    fields = Fields(body)
    fields.refuse(IMPOSSIBLE_IN_TEXT)
    prompts = _prompts(fields.take("prompt"))
    max_tokens = fields.whole("max_tokens", COMPLETION_TOKENS, 1, LARGE)
    return _asked(fields, prompts, max_tokens, fields.whole("logprobs", None, 0, MOST_LOGPROBS), best_of=True)


def _asked(
    fields: Fields, prompts: list[Any], max_tokens: int | None, logprobs: int | None, best_of: bool = False
) -> Asked:
    """What both APIs have."""
    fields.refuse(IMPOSSIBLE)
    fields.ignore(IGNORED)
    model = fields.take("model")
    if not isinstance(model, str):
        raise wants("model", "the name of a model", model)
    choices = fields.whole("n", 1, 1, MOST_CHOICES) or 1
    if best_of and fields.whole("best_of", choices, 1, MOST_CHOICES) != choices:
        raise refused("`best_of` cannot be had here: all choices are given, `n` of them.", "best_of")
    if len(prompts) * choices > MOST_PROMPTS:
        raise refused(
            f"{len(prompts)} prompts with n={choices} are more than {MOST_PROMPTS} answers; send fewer at once.", "n"
        )
    seed = fields.whole("seed", secrets.randbelow(1 << 31), -(1 << 63), (1 << 63) - 1) or 0
    temperature = fields.number("temperature", 1.0, 0, 2)
    sampling = {
        "temperature": temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        "top_p": fields.number("top_p", 1.0, 0, 1),
        # not OpenAI's, but what open models are often said to need; clients give it as `extra_body`
        "top_k": fields.whole("top_k", 0, 0, 1 << 31),
        "stop": _stops(fields.take("stop")),
        "logprobs": logprobs,
    }
    stream, include_usage = _streaming(fields)
    fields.refuse_rest()
    return Asked(model, prompts, choices, max_tokens, seed % SEEDS, sampling, stream, include_usage)


def _streaming(fields: Fields) -> tuple[bool, bool]:
    stream, options = fields.flag("stream"), fields.take("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise refused("`stream_options` goes with `stream: true` only.", "stream_options")
    inner = Fields(options)
    include_usage = inner.flag("include_usage")
    # random characters in each event, which hide how long tokens are; there is nothing to hide without TLS
    inner.refuse({"include_obfuscation": ((False,), "events are not padded")})
    inner.refuse_rest()
    return stream, include_usage


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise wants("stop", f"a text or up to {MOST_STOPS} texts, none of them empty", value)
    return tuple(stops)


def _prompts(value: Any) -> list[Any]:
    """A text, several texts, token ids, or several lists of token ids."""
    prompts = [value] if isinstance(value, str) or is_token_ids(value) else value
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MOST_PROMPTS:
        raise wants("prompt", f"a text, token ids, or a list of up to {MOST_PROMPTS} of these", value)
    if not (all(isinstance(prompt, str) for prompt in prompts) or all(map(is_token_ids, prompts))):
        raise wants("prompt", "a text, token ids, or a list of these, all of one kind", value)
    return prompts
