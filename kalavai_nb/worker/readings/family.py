"""Which processes belong to a stand-in: some that are known, and all that these have started."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


class Family:
    """Roots with their descendants, followed from one look to the next.

    Reading the parent of every process of a machine costs milliseconds, so each process is asked once: what is not of
    the family stays a stranger, and what is stays in it when its parent ends.
    """

    def __init__(self) -> None:
        self._roots: dict[int, int] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._strangers: set[int] = set()

    def members(self, roots: Iterable[int]) -> dict[int, list[psutil.Process]]:
        """The processes that live now, by the root they come from."""
        alive = set(psutil.pids())
        wanted = set(roots) & alive
        self._roots = {pid: root for pid, root in self._roots.items() if pid in alive and root in wanted}
        self._processes = {pid: process for pid, process in self._processes.items() if pid in self._roots}
        self._strangers &= alive
        for root in wanted - self._roots.keys():
            self._add(root, root)
            # what it started before it was known here has been taken for a stranger
            self._strangers = {pid for pid in self._strangers if pid < root}
        self._adopt(alive - self._roots.keys() - self._strangers)
        found: dict[int, list[psutil.Process]] = {root: [] for root in wanted}
        for pid, process in self._processes.items():
            found[self._roots[pid]].append(process)
        return found

    def _adopt(self, unknown: set[int]) -> None:
        parents = {pid: _parent(pid) for pid in unknown}
        while kin := {pid: parent for pid, parent in parents.items() if parent in self._roots}:
            for pid, parent in kin.items():
                del parents[pid]
                self._add(pid, self._roots[parent])
        self._strangers |= parents.keys()

    def _add(self, pid: int, root: int) -> None:
        try:
            self._processes[pid] = psutil.Process(pid)
            self._roots[pid] = root
        except psutil.Error:
            pass


def _parent(pid: int) -> int:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return 0
