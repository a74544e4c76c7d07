"""One prompt on its way: what is known of it wherever the model's devices come and go."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kalavai_nb.lm.generation import Delta, Generation, Sampling, TokenLogprob
from kalavai_nb.lm.text import TextStream

Sink = Callable[[Delta | BaseException], None]


class Request:
    """A prompt and what was generated so far. Everything that is needed to go on elsewhere: ids, wishes, seed.

    The thread of the model's ring calls `take`, `end` and `fail`; whoever asked iterates, or waits for `result`.
    """

    def __init__(self, row: int, ids: list[int], sampling: Sampling, tokenizer: Any, sink: Sink | None = None) -> None:
        self.row, self.ids, self.sampling = row, ids, sampling
        self.made: list[int] = []
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, sampling.stop)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._deltas: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()
        self._sink = sink or self._deltas.put
        self._finish_reason: str | None = None
        self._error: BaseException | None = None
        self._over = threading.Event()

    # the ring's side

    def take(self, token: int, logprobs: list[tuple[int, float]], done: bool) -> bool:
        """One more token; whether a stop string has ended it, so that the stages should hear of that."""
        if self.is_over:
            return False
        self.made.append(token)
        text = self._stream.push(token)
        scored = self._scored(logprobs)
        if self._stream.stopped:
            self._deliver(Delta(text, (token,), scored), "stop")
            return not done
        if done:
            reason = "stop" if token in self.sampling.eos else "length"
            self._deliver(Delta(text + self._stream.finish(), (token,), scored), reason)
        else:
            self._deliver(Delta(text, (token,), scored), None)
        return False

    def end(self, reason: str) -> None:
        """It ends here, for another reason than its tokens."""
        if not self.is_over:
            self._deliver(Delta(self._stream.finish()), reason)

    def fail(self, error: BaseException) -> None:
        """It cannot go on."""
        if not self.is_over:
            self._error = error
            self._over.set()
            self._tell(error)

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    # the asker's side

    def __iter__(self) -> Iterator[Delta]:
        """Its deltas as they come. Raises what it failed of."""
        while True:
            delta = self._deltas.get()
            if isinstance(delta, BaseException):
                raise delta
            yield delta
            if delta.finish_reason:
                return

    def result(self) -> Generation:
        """Wait for its end. Raises what it failed of."""
        self._over.wait()
        if self._error:
            raise self._error
        return self.so_far()

    def so_far(self) -> Generation:
        """What there is at this moment."""
        reason = self._finish_reason or "cancelled"
        return Generation("".join(self._text), list(self.made), reason, len(self.ids), list(self._logprobs))

    # inside

    def _deliver(self, delta: Delta, reason: str | None) -> None:
        self._text.append(delta.text)
        self._logprobs += delta.logprobs
        if reason:
            self._finish_reason = reason
            delta = Delta(delta.text, delta.token_ids, delta.logprobs, reason)
            self._over.set()
        if delta.text or delta.token_ids or reason:
            self._tell(delta)

    def _tell(self, delta: Delta | BaseException) -> None:
        # what goes wrong with whoever listens is not the ring's to suffer
        with contextlib.suppress(Exception):
            self._sink(delta)

    def _scored(self, logprobs: list[tuple[int, float]]) -> tuple[TokenLogprob, ...]:
        if not logprobs:
            return ()
        (token, logprob), *top = logprobs
        named = tuple((id, self._tokenizer.decode([id]), value) for id, value in top)
        return (TokenLogprob(token, self._tokenizer.decode([token]), logprob, named),)
