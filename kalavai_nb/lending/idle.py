"""Whether the owner of this machine uses it now: other processes on its GPUs, other load on its cores.

Knows neither Dask nor torch. A driver may hang: `look` belongs in a thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from kalavai_nb.reading import Process, Reading
from kalavai_nb.state import Device
from kalavai_nb.worker.readings import reader_of
from kalavai_nb.worker.readings.family import Family
from kalavai_nb.worker.readings.machine import cores
from kalavai_nb.worker.readings.processes import named

QUIET_SECONDS = 60.0
# of all cores, in the mean of the last looks: an owner who reads their mail is not in the way, one who compiles is
FOREIGN_LOAD = 0.25
LOAD_LOOKS = 3
# of a GPU: a desktop that is drawn takes less
FOREIGN_USE = 0.1
# where a driver does not say who is busy, whoever draws with so much memory is taken for a game, not for a desktop
DRAWS_BYTES = 1 << 30
# what Linux calls the namespace in which process ids are those of the machine
INITIAL_NAMESPACE = "pid:[4026531836]"


class IdleWatch:
    """Looks whether processes that do not come from ``root`` use these devices.

    In use is said at once, and idle again when it has been quiet for ``quiet_seconds``. GPUs are looked at for other
    people's processes; stand-ins, and GPUs that do not tell them, for load of others on the machine's cores.
    """

    def __init__(
        self,
        root: int,
        devices: Iterable[Device],
        quiet_seconds: float = QUIET_SECONDS,
        foreign_load: float = FOREIGN_LOAD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._quiet_seconds, self._clock = root, quiet_seconds, clock
        self._devices = list(devices)
        self._family = Family()
        gpus = [device for device in self._devices if device.kind in ("cuda", "rocm")]
        self._gpus = [_Gpu(device) for device in gpus]
        self._load = _Load(foreign_load) if len(gpus) < len(self._devices) or not self._devices else None
        self._why, self._seen = "", -float("inf")

    @property
    def trouble(self) -> str:
        """Why this cannot be told here, for who wants to lend; empty where it can."""
        if self._gpus and _in_a_container():
            return (
                "--when-idle cannot be kept in a container: the driver names processes as the machine counts them, so "
                "yours cannot be told from the pool's. Lend from outside of it, or in one that shares the machine's "
                "process ids (--pid=host)."
            )
        return ""

    def look(self) -> str:
        """Why it is in use, such as "blender (pid 4711) is on cuda:0"; empty where it is idle. Never raises."""
        now = self._clock()
        why = ""
        with contextlib.suppress(Exception):  # a process may vanish between any two lines
            why = self._look()
        if why:
            # the first reason holds: one that changed each second would be news each second
            self._why, self._seen = self._why or why, now
        elif now - self._seen >= self._quiet_seconds:
            self._why = ""
        return self._why

    def close(self) -> None:
        """Let the drivers go."""
        for gpu in self._gpus:
            gpu.close()

    def _look(self) -> str:
        members = self._family.members([self._root]).get(self._root, [])
        ours = {process.pid for process in members}
        for gpu in self._gpus:
            if why := gpu.look(ours):
                return why
        return self._load.look(members) if self._load else ""


class _Gpu:
    """One GPU, and who uses it."""

    def __init__(self, device: Device) -> None:
        self._device, self._reader = device, reader_of(device, lambda: ())

    def look(self, ours: set[int]) -> str:
        reading = self._reader.read()
        users = _nvidia_users(self._device) if self._device.kind == "cuda" else _plain_users(reading)
        name = f"{self._device.kind}:{self._device.index}"
        for user in sorted(users, key=lambda user: user.pid):
            if user.pid not in ours and user.is_in_the_way:
                return f"{named(user.pid, None).name or 'a process'} (pid {user.pid}) is on {name}"
        # nothing of ours runs, and yet it is busy, with whatever the driver does not tell apart
        told = any(user.pid in ours or user.use is not None for user in users)
        if not told and (reading.utilisation or 0.0) >= FOREIGN_USE:
            return f"{name} is busy ({reading.utilisation:.0%})"
        return ""

    def close(self) -> None:
        self._reader.close()


@dataclass(frozen=True)
class _User:
    """A process on a GPU. ``use`` is how busy it kept it in the last moment, None where the driver does not tell."""

    pid: int
    computes: bool
    memory_bytes: int | None = None
    use: float | None = None

    @property
    def is_in_the_way(self) -> bool:
        """Whether it is more than the desktop, which is drawn whether somebody sits there or not."""
        if self.computes:
            return True
        return (self.memory_bytes or 0) >= DRAWS_BYTES if self.use is None else self.use >= FOREIGN_USE


def _plain_users(reading: Reading) -> list[_User]:
    return [_User(process.pid, True, process.memory_bytes) for process in reading.processes]


def _nvidia_users(device: Device) -> list[_User]:
    import pynvml as nvml

    from kalavai_nb.worker.readings.nvml import Nvml

    driver = Nvml(device.selector)
    handle = driver.open()
    try:
        drawing, computing = (_processes(nvml, handle, sort) for sort in ("Graphics", "Compute"))
        use = _use(nvml, handle) if drawing else None
    finally:
        driver.shut()
    found = [_User(each.pid, True, each.memory_bytes) for each in computing]
    # games, and desktops on some drivers, are in both lists: then it is what they do that counts
    both = {each.pid for each in drawing}
    return [user for user in found if user.pid not in both] + [
        _User(each.pid, False, each.memory_bytes, None if use is None else use.get(each.pid, 0.0)) for each in drawing
    ]


def _processes(nvml: Any, handle: Any, sort: str) -> list[Process]:
    for version in ("v3", "v2"):
        with contextlib.suppress(Exception):  # an old driver, an old binding
            way = getattr(nvml, f"nvmlDeviceGet{sort}RunningProcesses_{version}")
            return [Process(each.pid, "", each.usedGpuMemory) for each in way(handle)]
    return []


def _use(nvml: Any, handle: Any) -> dict[int, float] | None:
    """How busy each process kept the GPU in the last seconds; None where this driver does not tell."""
    since = int((time.time() - 2) * 1_000_000)
    try:
        samples: Sequence[Any] = nvml.nvmlDeviceGetProcessUtilization(handle, since)
    except nvml.NVMLError as error:
        # nothing has been busy since then
        return {} if error.value == nvml.NVML_ERROR_NOT_FOUND else None
    use: dict[int, float] = {}
    for sample in samples:
        busiest = max(sample.smUtil, sample.encUtil, sample.decUtil) / 100
        use[sample.pid] = max(use.get(sample.pid, 0.0), busiest)
    return use


class _Load:
    """Load on the machine's cores that is not ours: all of it, less what our processes took."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._before: tuple[float, float, float] | None = None
        self._shares: list[float] = []

    def look(self, ours: Sequence[psutil.Process]) -> str:
        now = (time.monotonic(), _busy_seconds(), sum(map(_spent_seconds, ours)))
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return ""
        seconds, busy, mine = (late - early for late, early in zip(now, before, strict=True))
        # what ended outside of its family has taken its seconds with it
        share = max(0.0, busy - max(0.0, mine)) / (seconds * (os.cpu_count() or cores()))
        self._shares = [*self._shares, share][-LOAD_LOOKS:]
        mean = sum(self._shares) / LOAD_LOOKS
        return f"other programs keep {mean:.0%} of its cores busy" if mean >= self._most else ""


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # guests are in user and nice already; what a host took from this virtual machine is nobody's here
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq")))


def _spent_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _in_a_container() -> bool:
    """Whether process ids here are not those of the machine."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid") != INITIAL_NAMESPACE
    return False
