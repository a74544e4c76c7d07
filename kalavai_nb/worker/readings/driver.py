"""A GPU read through its vendor's library, which is opened again when it says nothing any more."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any, Protocol

from kalavai_nb.reading import Reading
from kalavai_nb.worker.readings.questions import Questions

# opening a driver may take a second, and a GPU that is gone stays gone for a while
RETRY_SECONDS = 2.0


class Driver(Protocol):
    """A vendor's library, for one device. Everything but `reason` may raise anything."""

    def open(self) -> Any:
        """Initialise the library; returns its handle of the device."""
        ...

    def read(self, handle: Any, questions: Questions) -> Reading:
        """What the device answers. The note is what is special about it."""
        ...

    def shut(self) -> None:
        """Undo one `open`."""
        ...

    def reason(self, error: Exception) -> str:
        """Why there was no answer, in words; empty for what the device or this driver does not have."""
        ...


class DriverReader:
    """A `Reader` by a driver.

    A device that answers nothing is let go at once, since a GPU cannot be reset while somebody has it open, and is
    opened anew every `RETRY_SECONDS`. So it is found again after a reset, a suspend, or an update of its driver.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._handle: Any = None
        self._retry_at = 0.0
        self._trouble = ""

    def read(self) -> Reading:
        if self._handle is None and time.monotonic() < self._retry_at:
            return Reading(note=self._trouble)
        try:
            return self._read()
        except Exception as error:  # a reader never raises
            return Reading(note=f"cannot be read: {error}")

    def close(self) -> None:
        if self._handle is not None:
            self._handle = None
            with contextlib.suppress(Exception):
                self._driver.shut()

    def _read(self) -> Reading:
        if self._handle is None:
            opening = Questions(self._driver.reason)
            self._handle = opening.ask("device", self._driver.open)
            if self._handle is None:
                return self._lost(opening.note() or "the driver does not know this device")
        questions = Questions(self._driver.reason)
        reading = self._driver.read(self._handle, questions)
        if questions.silent:
            self.close()
            return self._lost(questions.note())
        return replace(reading, note="; ".join(filter(None, (reading.note, questions.note()))))

    def _lost(self, trouble: str) -> Reading:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._trouble = trouble
        return Reading(note=trouble)
