"""CPU stand-ins: what their processes take of the machine's cores and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

import psutil

from kalavai_nb.reading import Process, Reading
from kalavai_nb.worker.readings.family import Family
from kalavai_nb.worker.readings.machine import cores
from kalavai_nb.worker.readings.own_memory import OwnMemory
from kalavai_nb.worker.readings.processes import largest


class CpuReader:
    """A CPU stand-in, seen through its processes: ``pids``, with all that they have started.

    Its memory is theirs, out of the stand-in's part of the machine's. Its utilisation is relative to its part of the
    cores (all of them by ``parts``): a process that fills one core of eight is at 50 % on one of four stand-ins. It
    ends at 100 %, though nothing stops a stand-in from taking cores that no other one uses.
    """

    def __init__(self, memory_bytes: int, pids: Callable[[], Iterable[int]], parts: int) -> None:
        self.memory_bytes, self._pids = memory_bytes, pids
        self._all_cores = cores()
        self._cores = self._all_cores / max(1, parts)
        self._family = Family()
        self._memory = OwnMemory()
        self._before: tuple[float, dict[int, float]] | None = None

    def read(self) -> Reading:
        try:
            return self._read()
        except Exception as error:  # a process may vanish between any two lines
            return Reading(memory_total_bytes=self.memory_bytes, note=f"cannot be read: {error}")

    def close(self) -> None:
        pass

    def _read(self) -> Reading:
        by_root = self._family.members(self._pids())
        members = [process for processes in by_root.values() for process in processes]
        memory = self._memory.of(members)
        names = {process.pid: _name(process) for process in members}
        return Reading(
            memory_used_bytes=sum(memory.values()),
            memory_total_bytes=self.memory_bytes,
            utilisation=self._utilisation(by_root),
            processes=largest(Process(pid, names[pid], memory_bytes) for pid, memory_bytes in memory.items()),
            note=f"CPU stand-in: its part is {self._cores:.3g} of {self._all_cores} cores",
        )

    def _utilisation(self, by_root: dict[int, list[psutil.Process]]) -> float | None:
        """Cores that were busy since the last reading, over those that are its part; None the first time.

        A process that ends leaves its seconds to its parent. So the sum over a root and what it has started misses
        nothing, and a root that is new began at zero.
        """
        now = time.monotonic()
        seconds = {root: sum(map(_cpu_seconds, processes)) for root, processes in by_root.items()}
        before, self._before = self._before, (now, seconds)
        if before is None or now <= before[0]:
            return None
        busy = sum(max(0.0, spent - before[1].get(root, 0.0)) for root, spent in seconds.items())
        return min(1.0, busy / (now - before[0]) / self._cores)


def _cpu_seconds(process: psutil.Process) -> float:
    """What it has spent, and what those of its children had that have ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""
