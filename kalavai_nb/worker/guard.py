"""The plugin in each worker that keeps what runs there within what the owner of the device lends.

Memory: a child that takes the device over what is lent is ended, with the reason; before that, torch on a GPU is told
how much there is, so that it raises its own OutOfMemoryError. Power: see power.py. All of it may change at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from kalavai_nb.reading import Reading
from kalavai_nb.state import Device
from kalavai_nb.worker.child import MEMORY_FRACTION, end_child, living_children
from kalavai_nb.worker.power import DriverLimit, Pauses
from kalavai_nb.worker.readings import reader_of
from kalavai_nb.worker.readings.family import Family
from kalavai_nb.worker.readings.own_memory import OwnMemory

LOOK_SECONDS = 0.25
# a driver is asked for processes more rarely: that takes milliseconds
LOOK_SECONDS_GPU = 1.0
CLOSE_SECONDS = 3.0
# what a process has on a GPU beside torch's tensors: kernels, a context
CONTEXT_BYTES = 600 << 20


class Guard(WorkerPlugin):
    """The limits of one device. They are what `kalavai_nb.lending.limits.Limits.order` says; nothing is no limit."""

    name = "kalavai-guard"

    def __init__(
        self, device: Device, limits: Mapping[str, Any], environment: MutableMapping[str, str], directory: Path
    ) -> None:
        self.device, self.limits = device, dict(limits)
        self._whole_bytes = int(limits.get("whole_bytes") or device.memory_bytes)
        self._environment = environment
        self._driver_limit = DriverLimit(device, directory)
        self._memory = _GpuMemory(device) if device.kind in ("cuda", "rocm") else _HostMemory()
        self._pauses: Pauses | None = None
        self._watts: float | None = None
        self._closed = threading.Event()
        # a driver that hangs must stop nothing else
        self._thread = threading.Thread(target=self._run, name="kalavai-guard", daemon=True)
        self._tell_torch()

    def setup(self, worker: Worker) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._thread.start()

    async def teardown(self, worker: Worker) -> None:
        self._closed.set()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def set(self, limits: Mapping[str, Any]) -> None:
        """Keep to these from now on. The pool hears of them, too."""
        if dict(limits) == self.limits:
            return
        self.limits = dict(limits)
        self._whole_bytes = int(limits.get("whole_bytes") or self._whole_bytes)
        self._tell_torch()
        said = {
            "op": "kn_limits",
            "device": self.device.id,
            "limits": self.limits.get("text", ""),
            "memory": self.lent_bytes,
        }
        # while the worker comes and goes there is no stream to its head
        with contextlib.suppress(CommClosedError, TypeError):
            self._worker.batched_stream.send(said)

    # memory

    @property
    def lent_bytes(self) -> int:
        """How much memory is lent."""
        return int(self.limits.get("memory_bytes") or self._whole_bytes)

    def _tell_torch(self) -> None:
        """Children that start from now on find in their environment which part of the device torch may take."""
        self._environment.pop(MEMORY_FRACTION, None)
        lent = self.limits.get("memory_bytes")
        if lent and lent < self._whole_bytes and self.device.kind in ("cuda", "rocm"):
            for_torch = max(lent - CONTEXT_BYTES, lent // 2)
            self._environment[MEMORY_FRACTION] = f"{for_torch / self._whole_bytes:.4f}"

    def _run(self) -> None:
        pause = LOOK_SECONDS_GPU if isinstance(self._memory, _GpuMemory) else LOOK_SECONDS
        is_over = False
        while not is_over:
            limits = self.limits
            self._keep_power(limits.get("max_power_watts"))
            if lent := limits.get("memory_bytes"):
                with contextlib.suppress(Exception):  # a process may vanish between any two lines
                    self._look(lent)
            is_over = self._closed.wait(pause)
        self._keep_power(None)
        self._memory.close()

    def _look(self, lent: int) -> None:
        """End the largest child where all of them together have more than is lent."""
        used = self._memory.by_child(living_children())
        total = sum(used.values())
        if total <= lent:
            return
        largest = max(used, key=lambda child: used[child])
        # so exact that the two are seen to be different
        digits = next((n for n in (1, 2) if round(total / 2**30, n) > round(lent / 2**30, n)), 3)
        its, all_of_it, most = (f"{amount / 2**30:.{digits}f}" for amount in (used[largest], total, lent))
        others = f" (all that runs there: {all_of_it} GB)" if total - used[largest] > total / 20 else ""
        reason = f"it used {its} GB{others}, over the {most} GB that the owner of {self.device.host} lends"
        self._loop.call_soon_threadsafe(end_child, largest, reason)

    # power

    def _keep_power(self, watts: float | None) -> None:
        if watts == self._watts:
            return
        self._watts = watts
        if watts is None:
            self._end_pauses()
            self._driver_limit.restore()
        elif not self._driver_limit.set(watts):
            self._end_pauses()
        elif self._pauses:
            self._pauses.watts = watts
        else:
            reader = reader_of(self.device, living_children)
            self._pauses = Pauses(reader.read, living_children, watts)

    def _end_pauses(self) -> None:
        if self._pauses:
            self._pauses.close()
            self._pauses = None


class _HostMemory:
    """The machine's memory, of a child and all that it has started."""

    def __init__(self) -> None:
        self._family, self._own = Family(), OwnMemory()

    def by_child(self, children: list[int]) -> dict[int, int]:
        members = self._family.members(children)
        own = self._own.of([process for processes in members.values() for process in processes])
        return {child: sum(own.get(each.pid, 0) for each in processes) for child, processes in members.items()}

    def close(self) -> None:
        pass


class _GpuMemory:
    """A GPU's memory, of a child and all that it has started, as the driver says it of each process."""

    def __init__(self, device: Device) -> None:
        self._family, self._reader = Family(), reader_of(device, lambda: ())

    def by_child(self, children: list[int]) -> dict[int, int]:
        reading: Reading = self._reader.read()
        on_gpu = {process.pid: process.memory_bytes or 0 for process in reading.processes}
        members = self._family.members(children)
        return {child: sum(on_gpu.get(each.pid, 0) for each in processes) for child, processes in members.items()}

    def close(self) -> None:
        self._reader.close()
