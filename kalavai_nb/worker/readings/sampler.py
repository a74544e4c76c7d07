"""The thread that reads a device once a second."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from kalavai_nb.reading import Machine, Reading
from kalavai_nb.state import machine_id

SECOND = 1.0
# a wait may end a little early, and a second has one reading
LEAST_SECONDS = 0.1

logger = logging.getLogger(__name__)


class Sampler:
    """Calls ``read`` at every whole second of the wall clock, and ``hear`` with what it says, in a thread of its own.

    A driver that hangs therefore stops nothing but its own readings, and after three seconds everybody sees that the
    device is silent. Whole seconds that go by meanwhile, or while the machine sleeps, are skipped. ``close_reader`` is
    called in the same thread at its end, since that may hang just as well.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Reading, Machine]],
        hear: Callable[[Reading, Machine], None],
        close_reader: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._hear, self._close_reader = read, hear, close_reader
        self._machine = Machine(machine_id(), socket.gethostname())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kalavai-readings", daemon=True)

    def start(self) -> None:
        """Begin, with a first reading at once."""
        self._thread.start()

    def close(self) -> None:
        """End. Returns at once; nothing is read from now on, and what is being read now is heard by nobody."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._tick()
            self._closed.wait(until_next_second(time.time()))
        with contextlib.suppress(Exception):
            self._close_reader()

    def _tick(self) -> None:
        try:
            reading, self._machine = self._read()
        except Exception as error:  # a bug in a reader must not look like a dead device
            logger.exception("a device could not be read")
            reading = Reading(note=f"cannot be read: {error}")
        if not self._closed.is_set():
            try:
                self._hear(reading, self._machine)
            except Exception:
                # the loop of whoever listens may have ended between the two lines above
                if not self._closed.is_set():
                    logger.exception("a reading could not be passed on")


def until_next_second(now: float) -> float:
    """Seconds to the next whole second of the wall clock that is not this very moment."""
    left = SECOND - now % SECOND
    return left if left > LEAST_SECONDS else left + SECOND
