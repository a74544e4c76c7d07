"""What the journal has of a sweep and of each of its trials."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from kalavai_nb.state import Trial
from kalavai_nb.trials.content import Content
from kalavai_nb.trials.end import End


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that was recorded but cannot be rebuilt here: its file or what it is made of is gone."""

    why: str
    file_is_gone: bool = False


@dataclass(frozen=True)
class Entry:
    """What the journal has of one trial: ``key`` and ``occurrence`` say which config of the sweep it is about.

    ``value`` and ``end`` (of a failed one) are the outcome as it came; ``checkpoint`` is what it saved last.
    """

    key: str
    occurrence: int
    trial: Trial
    config: Content
    value: Content | None = None
    end: End = field(default_factory=dict)
    checkpoint: Content | None = None


@dataclass(frozen=True)
class Recorded:
    """A sweep as the journal has it."""

    id: int
    name: str
    fn: str
    metrics: tuple[str, ...]
    modes: tuple[str, ...]
    code: dict[str, str]
    entries: list[Entry]


def loaded(content: Content | None) -> Any:
    """The value, or what stands for one that cannot be rebuilt here."""
    if content is None:
        return None
    try:
        return content.load()
    except Exception as error:  # whatever its own code raises: the rest of the sweep is still worth having
        return Unreadable(f"{type(error).__name__}: {error}", isinstance(error, FileNotFoundError))


def squeezed(text: str) -> bytes | None:
    """A text in few bytes; None for an empty one."""
    return zlib.compress(text.encode()) if text else None


def unsqueezed(content: bytes | None) -> str:
    """The text again."""
    return zlib.decompress(content).decode() if content else ""
