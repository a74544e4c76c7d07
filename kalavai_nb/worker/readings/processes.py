"""Processes that use a device, for people to read."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from kalavai_nb.reading import Process

# a reading travels once a second
MOST = 20


def named(pid: int, memory_bytes: int | None) -> Process:
    """A process with its name, which is empty where it cannot be seen from here."""
    try:
        name = psutil.Process(pid).name()
    except psutil.Error:
        name = ""
    return Process(pid, name, memory_bytes)


def largest(processes: Iterable[Process]) -> tuple[Process, ...]:
    """Those with the most memory, largest first: `MOST` of them."""
    return tuple(sorted(processes, key=lambda process: (-(process.memory_bytes or 0), process.pid))[:MOST])
