"""What a server needs of a model; `ShardedLM` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kalavai_nb.lm.request import Request, Sink


class Served(Protocol):
    """A model that many ask at once. ``error`` is what it ended of, if it has."""

    name: str
    tokenizer: Any
    max_len: int

    @property
    def error(self) -> BaseException | None:
        """What it has ended of, where nothing is left that could ever answer."""

    def encode(self, prompt: Any) -> list[int]:
        """The token ids of a prompt."""

    def submit(self, prompt: Any, sink: Sink | None = None, **sampling: Any) -> Request:
        """Begin to generate and return at once; ``sink`` gets the deltas, on another thread."""

    def cancel(self, requests: Sequence[Request]) -> None:
        """These are not wanted any more."""
