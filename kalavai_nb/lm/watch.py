"""Is a ring that says nothing slow, or gone? Found out by asking, so that a slow one is left in peace."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from kalavai_nb.lm.member import Member

# a step is overdue after three times what nearly all took, and never before this
LEAST_SECONDS = 2.0
TIMES = 3
REMEMBERED = 256
# whoever has said nothing for so long is asked, and has so long to answer
SILENT_SECONDS = 1.0
ANSWER_SECONDS = 1.5


class Watch:
    """How long tokens take, and when the last one came."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=REMEMBERED)
        self._last = time.monotonic()
        self._seen: tuple[float, int] | None = None

    def begin(self) -> None:
        """From now on something is waited for."""
        self._last = time.monotonic()
        self._seen = None

    def progress(self, *, is_step: bool) -> None:
        """A token came; of a step, or of a prompt."""
        now = time.monotonic()
        if is_step:
            self._gaps.append(now - self._last)
        self._last, self._seen = now, None

    @property
    def overdue_seconds(self) -> float:
        """How long a step may take before somebody is asked."""
        slowest = sorted(self._gaps)[int(0.99 * len(self._gaps))] if self._gaps else 0.0
        return max(LEAST_SECONDS, TIMES * slowest)

    def is_overdue(self) -> bool:
        # asking takes time, too: both together are what a person waits
        return time.monotonic() - self._last > self.overdue_seconds / 2

    def ask_the_silent(self, members: Sequence[Member]) -> None:
        """Ask members that have said nothing for a while; one that does not answer is dead."""
        now = time.monotonic()
        for member in members:
            if member.is_dead or not member.post.port:
                continue
            if member.pinged is not None and now - member.pinged > ANSWER_SECONDS:
                member.end_as(f"did not answer within {ANSWER_SECONDS:g} s")
            elif member.pinged is None and now - member.last_heard > SILENT_SECONDS:
                member.ping()

    def stands_still(self, members: Sequence[Member]) -> bool:
        """Whether all are there and idle, and have run nothing for a while: what they waited for was lost."""
        if any(member.is_busy or member.is_dead for member in members):
            self._seen = None
            return False
        if any(member.pinged is not None for member in members):
            return False
        pieces, now = sum(member.pieces for member in members), time.monotonic()
        if self._seen is None or self._seen[1] != pieces:
            self._seen = (now, pieces)
            return False
        return now - self._seen[0] > self.overdue_seconds
