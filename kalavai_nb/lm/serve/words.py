"""Answers in the words of OpenAI's two APIs: objects, their pieces in a stream, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kalavai_nb.lm.generation import TokenLogprob
from kalavai_nb.lm.serve.asked import Asked, read_chat, read_text
from kalavai_nb.lm.text import UNFINISHED

Json = dict[str, Any]


class Words(Protocol):
    """One of the APIs."""

    prefix: str
    whole: str
    chunk: str
    # what the prompt is called in the request
    prompt: str

    def read(self, body: Any) -> Asked:
        """What its request asks for. Raises a Fault."""

    def choice(self, index: int, text: str, logprobs: Json | None, reason: str) -> Json:
        """A choice of an answer given at once."""

    def openings(self, index: int) -> list[Json]:
        """What comes before the first text of a choice in a stream."""

    def piece(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        """A piece of a choice in a stream; the one with a reason is the last."""

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """Of tokens before which so many characters came."""


class ChatWords:
    """POST /v1/chat/completions."""

    prefix, whole, chunk, prompt = "chatcmpl", "chat.completion", "chat.completion.chunk", "messages"

    def read(self, body: Any) -> Asked:
        return read_chat(body)

    def choice(self, index: int, text: str, logprobs: Json | None, reason: str) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def openings(self, index: int) -> list[Json]:
        return [self._piece(index, {"role": "assistant", "content": "", "refusal": None}, None, None)]

    def piece(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return self._piece(index, {} if reason else {"content": text}, logprobs, reason)

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        content = [
            {
                **_scored(token.text, token.logprob),
                "top_logprobs": [_scored(text, value) for _, text, value in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _piece(self, index: int, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class TextWords:
    """POST /v1/completions."""

    prefix, whole, chunk, prompt = "cmpl", "text_completion", "text_completion", "prompt"

    def read(self, body: Any) -> Asked:
        return read_text(body)

    def choice(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def openings(self, index: int) -> list[Json]:
        return []

    def piece(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return self.choice(index, "" if reason else text, logprobs, reason)

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_by_text(token) for token in tokens] if any(token.top for token in tokens) else None,
            "text_offset": offsets,
        }


def usage_of(prompt_tokens: int, completion_tokens: int) -> Json:
    """What an account would be charged for."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _scored(text: str, logprob: float) -> Json:
    # half of a character has bytes of its own, which the text does not tell
    return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}


def _by_text(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the chosen one where it is none of them."""
    top: dict[str, float] = {}
    for text, value in [*((text, value) for _, text, value in token.top), (token.text, token.logprob)]:
        top.setdefault(text, value)
    return top
