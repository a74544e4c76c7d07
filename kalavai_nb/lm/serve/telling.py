"""One answer in the words of its API, whole or in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kalavai_nb.lm.generation import Delta, TokenLogprob
from kalavai_nb.lm.serve.answers import Answers, Piece
from kalavai_nb.lm.serve.words import Json, Words, usage_of


@dataclass
class _Choice:
    """What of a choice has come."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str = ""


class Telling:
    """Tells of ``answers``; ``scored`` is whether log-probabilities were asked for."""

    def __init__(self, words: Words, model: str, answers: Answers, scored: bool, include_usage: bool) -> None:
        self._words, self._model, self._answers = words, model, answers
        self._scored, self._include_usage = scored, include_usage
        self._id, self._created = f"{words.prefix}-{uuid.uuid4().hex}", int(time.time())

    async def whole(self, choices: int) -> Json:
        """All of it, when it has ended."""
        made = [_Choice() for _ in range(choices)]
        while (piece := await self._answers.next()) is not None:
            index, delta = piece
            made[index].text += delta.text
            made[index].logprobs += self._told(index, delta)
            made[index].reason = delta.finish_reason or ""
        told = [
            self._words.choice(index, choice.text, self._logprobs(choice.logprobs, 0), choice.reason)
            for index, choice in enumerate(made)
        ]
        return self._object(self._words.whole, told, usage=self._usage())

    async def chunks(self, piece: Piece | None, choices: int) -> AsyncIterator[Json]:
        """It as it comes; ``piece`` is the first."""
        offsets = [0] * choices
        for index in range(choices):
            for opening in self._words.openings(index):
                yield self._chunk([opening])
        while piece is not None:
            for told in self._pieces(*piece, offsets):
                yield self._chunk([told])
            piece = await self._answers.next()
        if self._include_usage:
            yield self._chunk([], usage=self._usage())

    def _pieces(self, index: int, delta: Delta, offsets: list[int]) -> list[Json]:
        tokens = self._told(index, delta)
        pieces = []
        if delta.text or tokens:
            logprobs = self._logprobs(tokens, offsets[index])
            pieces.append(self._words.piece(index, delta.text, logprobs, None))
        if delta.finish_reason:
            pieces.append(self._words.piece(index, "", None, delta.finish_reason))
        offsets[index] += sum(len(token.text) for token in tokens)
        return pieces

    def _told(self, index: int, delta: Delta) -> tuple[TokenLogprob, ...]:
        return delta.logprobs[:-1] if self._answers.ends(index, delta) else delta.logprobs

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json | None:
        return self._words.logprobs(tokens, offset) if self._scored else None

    def _usage(self) -> Json:
        return usage_of(self._answers.prompt_tokens, self._answers.completion_tokens)

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        return self._object(self._words.chunk, choices, **({"usage": usage} if self._include_usage else {}))

    def _object(self, kind: str, choices: list[Json], **more: Any) -> Json:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**head, "system_fingerprint": None, "choices": choices, **more}
