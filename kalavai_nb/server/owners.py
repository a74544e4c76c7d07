"""Which of the owners that have published something are there, which are silent, and which have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kalavai_nb.registry.published import Published
from kalavai_nb.server.processes import is_alive, is_here

SILENT_AFTER_SECONDS = 4.0
# whoever goes on writing lives, whatever we know of its process: it may be one of another container
ENDED_AFTER_SECONDS = 2.0
ENDED_SHOWN_SECONDS = 15.0

# whose word counts more
RANKS = {"live": 0, "lost": 1, "silent": 1, "ended": 2}


@dataclass(frozen=True)
class Owner:
    """An owner as it is now: ``entry`` is the name of its files, ``link`` "live", "lost", "silent" or "ended"."""

    entry: str
    published: Published
    link: str
    silent_seconds: int = 0

    @property
    def worth(self) -> tuple[int, float]:
        """The lower, the more its snapshot is worth."""
        return RANKS[self.link], -self.published.time


@dataclass
class _Sight:
    """Since when an owner has said nothing new, by our clock; ``seen`` is the same as of ``time.time()``."""

    sequence: int
    changed: float
    seen: float
    ended: float | None = None


class Owners:
    """Judges owners by whether what they write goes on. ``clock`` gives seconds, as ``time.monotonic`` does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sights: dict[str, _Sight] = {}

    def judge(self, published: Mapping[str, Published]) -> tuple[list[Owner], list[str]]:
        """The owners to show, and the entries of those that have ended and been shown long enough."""
        now = self._clock()
        self._sights = {entry: self._sight(entry, each, now) for entry, each in published.items()}
        owners = [self._owner(entry, each, now) for entry, each in published.items()]
        over = {owner.entry for owner in owners if self._is_over(self._sights[owner.entry], now)}
        return [owner for owner in owners if owner.entry not in over], sorted(over)

    def _sight(self, entry: str, published: Published, now: float) -> _Sight:
        sight = self._sights.get(entry)
        if sight is None:
            # the clock of its files is ours; that of another machine may be any
            here = is_here(published.machine, published.host)
            age = max(0.0, time.time() - published.written) if here else 0.0
            return _Sight(published.sequence, now - age, published.written)
        if sight.sequence != published.sequence:
            return _Sight(published.sequence, now, time.time())
        return sight

    def _owner(self, entry: str, published: Published, now: float) -> Owner:
        sight = self._sights[entry]
        quiet = now - sight.changed
        if quiet >= ENDED_AFTER_SECONDS and _is_gone(published, sight):
            sight.ended = now if sight.ended is None else sight.ended
            return Owner(entry, published, "ended")
        sight.ended = None
        if quiet >= SILENT_AFTER_SECONDS:
            return Owner(entry, published, "silent", int(quiet))
        return Owner(entry, published, published.link)

    @staticmethod
    def _is_over(sight: _Sight, now: float) -> bool:
        return sight.ended is not None and now - sight.ended >= ENDED_SHOWN_SECONDS


def _is_gone(published: Published, sight: _Sight) -> bool:
    return is_here(published.machine, published.host) and not is_alive(published.pid, sight.seen)
