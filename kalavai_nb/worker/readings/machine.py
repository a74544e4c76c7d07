"""The machine as a whole: its cores, its memory, and how busy they are."""

from __future__ import annotations

import os
import socket

import psutil

from kalavai_nb.reading import Machine
from kalavai_nb.state import machine_id


class MachineReader:
    """Reads the machine again and again; how busy its cores are is since the last time."""

    def __init__(self) -> None:
        self._nothing = Machine(machine_id(), socket.gethostname())
        self._before: tuple[float, float] | None = None

    def read(self) -> Machine:
        """The machine now. Never raises."""
        try:
            memory = psutil.virtual_memory()
            used = memory.total - memory.available
            busy = self._utilisation()
        except Exception:  # a system that does not say: no reading is worth an end of the readings
            return self._nothing
        return Machine(self._nothing.id, self._nothing.host, cores(), memory.total, used, busy)

    def _utilisation(self) -> float | None:
        times = psutil.cpu_times()
        # guests are in user and nice already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        before, self._before = self._before, (total, idle)
        if before is None or total <= before[0]:
            return None
        return min(1.0, max(0.0, 1 - float(idle - before[1]) / float(total - before[0])))


def cores() -> int:
    """The cores that processes of this machine may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
