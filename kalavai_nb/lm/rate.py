"""How many tokens a second come home, over the last seconds."""

from __future__ import annotations

import time
from collections import deque

WINDOW_SECONDS = 5.0


class Rate:
    """Counted by the ring's thread, looked at from any."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, tokens: int, now: float | None = None) -> None:
        """So many tokens have come."""
        moment = time.monotonic() if now is None else now
        self._counts.append((moment, tokens))
        while self._counts[0][0] < moment - WINDOW_SECONDS:
            self._counts.popleft()

    def per_second(self, now: float | None = None) -> float:
        """Tokens a second in the last `WINDOW_SECONDS`, or since they began to come, if that is less; at rest, 0."""
        moment = time.monotonic() if now is None else now
        recent = [(at, tokens) for at, tokens in list(self._counts) if at >= moment - WINDOW_SECONDS]
        if len(recent) < 2:
            return 0.0
        # the first of them is where the time begins
        return sum(tokens for _, tokens in recent[1:]) / max(1e-3, moment - recent[0][0])
