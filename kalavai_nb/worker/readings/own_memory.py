"""How much memory is a process's own, where many were forked from one that has imported torch."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

# looking at the pages of a process may take one part in so many of a core's time
SPARING = 500


class OwnMemory:
    """The memory of processes in bytes, with each page that several of them share counted once.

    Resident memory is cheap to read, and counts what a child shares with the fork server again for each child. The
    kernel also knows proportional memory (PSS), where a page that n processes share counts 1/n in each; but it walks
    all pages for that, 6 ms for a child of 350 MB. So what is shared is measured for one process after the other, as
    often as `SPARING` allows, and what is resident now, less that, is its own. A process that has not been measured yet
    is taken to share as much as the last one that has.
    """

    def __init__(self) -> None:
        self._measured: dict[int, float] = {}
        self._shared: dict[int, int] = {}
        self._usual = 0
        self._next = -math.inf

    def of(self, processes: Sequence[psutil.Process]) -> dict[int, int]:
        """Bytes by process id; one that has ended meanwhile is left out."""
        if not sys.platform.startswith("linux"):
            return {process.pid: own for process in processes if (own := _unique(process)) is not None}
        resident = {}
        for process in processes:
            with contextlib.suppress(psutil.Error):
                resident[process.pid] = int(process.memory_info().rss)
        self._measured = {pid: when for pid, when in self._measured.items() if pid in resident}
        self._shared = {pid: shared for pid, shared in self._shared.items() if pid in resident}
        if resident and time.monotonic() >= self._next:
            self._measure(min(resident, key=lambda pid: self._measured.get(pid, -math.inf)))
        return {pid: max(0, rss - self._shared.get(pid, self._usual)) for pid, rss in resident.items()}

    def _measure(self, pid: int) -> None:
        self._measured[pid] = time.monotonic()
        begun = time.thread_time()
        # no permission, no such process any more, no such file on this system: then it is as it was
        with contextlib.suppress(psutil.Error, OSError, ValueError, IndexError):
            pss = int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]) << 10
            self._usual = self._shared[pid] = max(0, int(psutil.Process(pid).memory_info().rss) - pss)
        self._next = time.monotonic() + SPARING * (time.thread_time() - begun)


def _unique(process: psutil.Process) -> int | None:
    """What no other process has, where that is cheap to know."""
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().uss)
    return None
