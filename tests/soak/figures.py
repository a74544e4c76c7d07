"""What a pool takes of its machine at a moment: processes, descriptors, memory, disk. Read from /proc, asks no one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

MB = 1e6
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Sample:
    """One moment. ``figures`` are numbers by what they count; sizes are in MB."""

    seconds: float
    is_quiet: bool
    figures: dict[str, float]


@dataclass
class Watched:
    """The processes of a soak, known by a mark in their environment: also those that have lost their parent."""

    kernel: int
    mark: str
    directory: Path
    # of the pool's workers and head, which are forks of one process and look alike
    head: int = 0
    began: float = 0.0

    def processes(self) -> list[psutil.Process]:
        """All there are, zombies too."""
        found = {process.pid: process for process in psutil.process_iter() if self._is_marked(process.pid)}
        with contextlib.suppress(psutil.Error):
            kernel = psutil.Process(self.kernel)
            found |= {process.pid: process for process in [kernel, *kernel.children(recursive=True)]}
        return list(found.values())

    def sample(self, is_quiet: bool = False) -> Sample:
        by_role: dict[str, list[psutil.Process]] = {"kernel": [], "head": [], "workers": [], "others": []}
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                by_role[self._role(process)].append(process)
        figures: dict[str, float] = {
            "processes": len(processes),
            "zombies": sum(_is_zombie(process) for process in processes),
            **_figures(processes, ""),
        }
        for role, those in by_role.items():
            figures |= _figures(those, f" of {role}")
        figures["processes of others"] = len(by_role["others"])
        for name in ("scratch", "runtime", "kalavai"):
            figures |= _disk(self.directory / name, name)
        figures |= _disk(self.directory / "notebook" / ".kalavai", "journal")
        figures |= _disk(SHARED_MEMORY, "/dev/shm")
        return Sample(round(time.monotonic() - self.began, 1), is_quiet, figures)

    def _is_marked(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    def _role(self, process: psutil.Process) -> str:
        if process.pid == self.kernel:
            return "kernel"
        if process.pid == self.head:
            return "head"
        parent = process.parent()
        # the machine's process forks them, and they look as it does
        is_fork = parent is not None and "kalavai_nb.machine" in parent.cmdline() == process.cmdline()
        return "workers" if is_fork else "others"


def _figures(processes: Iterable[psutil.Process], of: str) -> dict[str, float]:
    found = dict.fromkeys(("descriptors", "sockets", "threads", "memory MB", "resident MB"), 0.0)
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            links = _links(process.pid)
            found["descriptors"] += len(links)
            found["sockets"] += sum(link.startswith("socket:") for link in links)
            found["threads"] += process.num_threads()
            found["resident MB"] += process.memory_info().rss / MB
            found["memory MB"] += _own_bytes(process.pid) / MB
    return {f"{name}{of}": round(value, 1) for name, value in found.items()}


def _links(pid: int) -> list[str]:
    links = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return links


def _own_bytes(pid: int) -> int:
    """PSS: of what it shares with others, its part, so that a sum counts nothing twice."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _disk(directory: Path, name: str) -> dict[str, float]:
    files, taken = 0, 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            files += 1
            taken += status.st_blocks * 512
    return {f"files in {name}": files, f"MB in {name}": round(taken / MB, 2)}


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False
