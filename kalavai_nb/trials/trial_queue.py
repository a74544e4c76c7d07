"""The trials that wait, by what they need, in the order in which they are given away."""

from __future__ import annotations

import heapq
from collections import Counter

from kalavai_nb.state import Need
from kalavai_nb.trials.judge import Job


class TrialQueue:
    """Indices of trials that wait, in their order; those that went wrong before come behind those never tried."""

    def __init__(self) -> None:
        self._heaps: dict[Need, list[tuple[int, int]]] = {}
        self._waiting: dict[int, Job] = {}
        self._counts: Counter[Need] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, index: int, job: Job) -> None:
        self.take_out(index)
        self._waiting[index] = job
        self._counts[job.need] += 1
        heapq.heappush(self._heaps.setdefault(job.need, []), (job.priority, index))

    def pop(self, need: Need) -> tuple[int, Job] | None:
        """The next trial with exactly this need."""
        heap = self._heaps.get(need, [])
        while heap:
            _, index = heapq.heappop(heap)
            # one that was taken out, or put again with another need, has left its place here
            if index in self._waiting and self._waiting[index].need == need:
                job = self._waiting[index]
                self.take_out(index)
                return index, job
        self._heaps.pop(need, None)
        return None

    def take_out(self, index: int) -> None:
        if job := self._waiting.pop(index, None):
            self._counts[job.need] -= 1

    def of(self, need: Need) -> list[int]:
        """The trials that wait with this need."""
        return [index for index, job in self._waiting.items() if job.need == need]

    def needs(self) -> list[Need]:
        """What is waited for."""
        return [need for need, count in self._counts.items() if count]

    def count(self, need: Need) -> int:
        return self._counts[need]
