"""Why requests wait, told to their owners: at once when they begin to, and again when that has changed, not too often.

Of hundreds of requests each, in a pool of a thousand devices, whatever happens changes every reason: those who wait
would hear of it all the time, and the head would do nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kalavai_nb.ledger import Ledger
from kalavai_nb.state import Waiting

LEAST_SECONDS = 0.25
# of the head's time, a tenth at most goes into reasons
REST = 9.0
# of the queue, so many are shown
MOST_SHOWN = 200


class Waits:
    """Called on the scheduler's event loop alone. ``tell`` tells an owner."""

    def __init__(self, ledger: Ledger, tell: Callable[[Waiting], None]) -> None:
        self._ledger, self._tell = ledger, tell
        self._told: dict[str, str] = {}
        self._due: asyncio.TimerHandle | None = None
        self._pause = LEAST_SECONDS
        self._listing: tuple[Waiting, ...] = ()
        self._listed_until = 0.0

    def begin(self, request: str) -> None:
        """This request has been made: if it waits, say why."""
        if waiting := self._ledger.why(request, time.time()):
            self._say(waiting)

    def change(self) -> None:
        """Something has happened that may have changed the reasons."""
        if self._due is None and (self._ledger.queued or self._told):
            self._due = asyncio.get_running_loop().call_later(self._pause, self._say_all)

    def close(self) -> None:
        if self._due:
            self._due.cancel()

    def listing(self) -> tuple[Waiting, ...]:
        """The queue, for all to see; where it takes long to make, one that was made a moment ago."""
        if time.perf_counter() >= self._listed_until:
            began = time.perf_counter()
            self._listing = tuple(self._ledger.waiting(time.time(), MOST_SHOWN))
            ended = time.perf_counter()
            # a moment that nobody notices, where it is made at once
            self._listed_until = ended + (ended - began) * REST if ended - began > 0.002 else 0.0
        return tuple(waiting for waiting in self._listing if waiting.id in self._ledger.queued)

    def _say_all(self) -> None:
        self._due = None
        began = time.perf_counter()
        waiting = self._ledger.waiting(time.time())
        told, self._told = self._told, {each.id: each.reason for each in waiting}
        for each in waiting:
            if told.get(each.id) != each.reason:
                self._tell(each)
        self._pause = max(LEAST_SECONDS, (time.perf_counter() - began) * REST)

    def _say(self, waiting: Waiting) -> None:
        self._told[waiting.id] = waiting.reason
        self._tell(waiting)
