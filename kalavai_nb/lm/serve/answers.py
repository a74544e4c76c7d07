"""The generations of one HTTP request, from the thread of the model's ring to the event loop of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from kalavai_nb.lm.generation import Delta
from kalavai_nb.lm.request import Request
from kalavai_nb.lm.serve.asked import Asked
from kalavai_nb.lm.serve.faults import gone
from kalavai_nb.lm.serve.served import Served

Piece = tuple[int, Delta]


class Answers:
    """Requests of a model under way, and their deltas, each with the index of its choice, as they come.

    Made and asked in the event loop. ``on_piece`` is called there for each token that came.
    """

    def __init__(self, lm: Served, on_piece: Callable[[], None]) -> None:
        self._lm, self._on_piece = lm, on_piece
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue()
        self._requests: list[Request] = []
        self._left = 0
        self.prompt_tokens = self.completion_tokens = 0

    def begin(self, prompts: Sequence[list[int]], asked: Asked, max_tokens: Sequence[int]) -> None:
        """Submit each prompt as often as choices were asked for. The choices of the first prompt come first."""
        self.prompt_tokens = sum(map(len, prompts))
        for ids, most in zip(prompts, max_tokens, strict=True):
            for _ in range(asked.choices):
                index = len(self._requests)
                self.submit(index, ids, max_new_tokens=most, seed=asked.seed_of(index), **asked.sampling)

    def submit(self, index: int, ids: list[int], **sampling: object) -> None:
        """One more generation."""
        self._requests.append(self._lm.submit(ids, partial(self._hand_over, index), **sampling))
        self._left += 1

    async def next(self) -> Piece | None:
        """The next delta of any choice; None when all have ended. Raises what one of them failed of."""
        if not self._left:
            return None
        index, delta = await self._pieces.get()
        if isinstance(delta, BaseException):
            raise delta
        if delta.finish_reason == "cancelled":
            raise gone("The generation was ended from the notebook.")
        self._left -= bool(delta.finish_reason)
        self.completion_tokens += len(delta.token_ids)
        return index, delta

    def cancel(self) -> None:
        """What is still under way is not wanted any more. From any thread."""
        self._lm.cancel(list(self._requests))

    def ends(self, index: int, delta: Delta) -> bool:
        """Whether the last token of this delta is the model's own end, which is no part of its text."""
        eos = self._requests[index].sampling.eos
        return delta.finish_reason == "stop" and bool(delta.token_ids) and delta.token_ids[-1] in eos

    def _hand_over(self, index: int, delta: Delta | BaseException) -> None:
        # the ring's thread; the loop of a server that was closed is closed
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, index, delta)

    def _put(self, index: int, delta: Delta | BaseException) -> None:
        self._pieces.put_nowait((index, delta))
        if isinstance(delta, Delta) and delta.token_ids:
            self._on_piece()
