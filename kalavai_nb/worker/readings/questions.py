"""Questions to a driver, one by one: an answer that does not come leaves the others as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# where these are n/a, a person wants to know why; not every card has a thermometer
MISSED = ("memory", "utilisation")


class Questions:
    """The questions of one reading, and what became of them.

    ``reason`` puts an exception of the driver's library into words. Nothing ("") is for what this device or this driver
    simply does not have.
    """

    def __init__(self, reason: Callable[[Exception], str]) -> None:
        self._reason = reason
        self._unsupported: list[str] = []
        self._troubles: dict[str, list[str]] = {}
        self._answers = 0

    def ask(self, what: str, *ways: Callable[[], T]) -> T | None:
        """The answer of the first of ``ways`` that has one: the newest function first, then what older drivers have."""
        reasons = []
        for way in ways:
            try:
                answer = way()
            except Exception as error:  # a library of others, over a driver of any age
                reasons.append(self._reason(error))
            else:
                self._answers += 1
                return answer
        trouble = next(filter(None, reasons), "")
        if trouble:
            self._troubles.setdefault(trouble, []).append(what)
        else:
            self._unsupported.append(what)
        return None

    @property
    def silent(self) -> bool:
        """Whether every single question met with trouble: then it is the device or the driver, not a question."""
        return bool(self._troubles) and not self._answers and not self._unsupported

    def note(self) -> str:
        """What is missing and why; empty where all is well."""
        if self.silent and len(self._troubles) == 1:
            return next(iter(self._troubles))
        missed = [what for what in MISSED if what in self._unsupported]
        gaps = [f"the driver gives no {' and no '.join(missed)}"] if missed else []
        return "; ".join(gaps + [f"no {', '.join(whats)}: {reason}" for reason, whats in self._troubles.items()])
