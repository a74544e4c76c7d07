"""The place of one device in its machine: the process of its worker, and what that one has been told."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from kalavai_nb.state import Device

# one that cannot live is not started again and again at full speed
_SHORT_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0
# what the state of a device begins with whose worker does not start; the reason follows
FAILING = "failing:"

Process = multiprocessing.process.BaseProcess
_context = multiprocessing.get_context("fork")


class Seat:
    """Starts the worker of a device again whenever it has ended, for as long as the device is to be lent.

    ``fork(arguments…)`` starts the process. ``state`` is "starting", "lent", "leaving", "left" or "failing: …".
    """

    def __init__(self, fork: Callable[..., Process]) -> None:
        self._fork = fork
        self.process: Process | None = None
        self.state = "starting"
        self._ours: Connection | None = None
        self._place: tuple[Any, ...] = ()
        self._told: dict[str, Any] = {}
        self._leaving: dict[str, Any] | None = None
        self._since = self._not_before = 0.0
        self._pause = _SHORT_SECONDS

    def ends(self) -> list[Any]:
        """What is ready where there is something to look at."""
        return [self.process.sentinel, self._ours] if self.process else []

    def look(self, ready: list[Any]) -> None:
        """Take what the worker has said, or its end."""
        if self._ours in ready and self._ours is not None:
            try:
                self.state = self._ours.recv()
            except (EOFError, OSError):
                # its end follows
                self._ours.close()
                self._ours = None
        if self.process and self.process.sentinel in ready:
            self.process.join()
            now = time.monotonic()
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS) if now - self._since < 10 else _SHORT_SECONDS
            self._not_before = now + self._pause
            self._clear()

    def fill(
        self,
        device: Device,
        *,
        leaving: dict[str, Any] | None,
        address: str,
        contact: tuple[int, str] | None,
        arguments: tuple[Any, ...],
        settings: dict[str, Any],
    ) -> None:
        """Have a worker here that serves this device at this head, and knows the ``settings`` of now."""
        place = (address, contact, device.memory_bytes, device.limits)
        if self.process and place[:2] != self._place[:2]:
            # the head finds it nowhere else, and it finds the head nowhere else
            self.end()
        if self.process is None:
            if leaving is not None:
                self.state = "left"
            elif time.monotonic() >= self._not_before:
                self._start(device, address, contact, arguments, settings)
                self._place = place
            return
        if leaving != self._leaving:
            self._leaving = leaving
            self._send({"leaving": leaving})
        if settings != self._told:
            self._send({name: value for name, value in settings.items() if self._told.get(name) != value})
            self._told = dict(settings)

    def end(self) -> None:
        """End the worker now."""
        if self.process:
            self.process.terminate()
            self.process.join(5)
            self.process.kill()
            self.process.join()
            self._clear()

    # inside

    def _start(
        self,
        device: Device,
        address: str,
        contact: tuple[int, str] | None,
        arguments: tuple[Any, ...],
        settings: dict[str, Any],
    ) -> None:
        self._ours, theirs = _context.Pipe()
        self.process = self._fork(device, address, contact, *arguments, settings, theirs)
        theirs.close()
        self._since, self._told, self._leaving = time.monotonic(), dict(settings), None
        self._begin()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            if self._ours:
                self._ours.send(message)
        except OSError:
            # its end follows
            return

    def _clear(self) -> None:
        if self._ours:
            self._ours.close()
        self.process, self._ours, self._told = None, None, {}
        if self._leaving is not None:
            self.state = "left"
        else:
            self._begin()

    def _begin(self) -> None:
        # why the one before could not start is said until one has
        if not self.state.startswith(FAILING):
            self.state = "starting"
