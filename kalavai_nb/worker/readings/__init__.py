"""What a device says of itself at one moment: a `Reader` for each kind of device, and the thread that asks it.

Nothing in here raises where a driver is old, half installed or gone: what cannot be known is None, and the reading's
note says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from kalavai_nb.reading import Reading
from kalavai_nb.state import Device


class Reader(Protocol):
    """Reads one device. All calls come from one thread; a driver may take its time in any of them."""

    def read(self) -> Reading:
        """What the device says now. Never raises."""
        ...

    def close(self) -> None:
        """Let the driver go."""
        ...


def reader_of(device: Device, pids: Callable[[], Iterable[int]], parts: int = 1) -> Reader:
    """The reader of ``device``. A CPU stand-in is one of ``parts`` of its machine, and does what its ``pids`` do."""
    if device.kind == "cuda":
        from kalavai_nb.worker.readings.driver import DriverReader
        from kalavai_nb.worker.readings.nvml import Nvml

        return DriverReader(Nvml(device.selector))
    if device.kind == "rocm":
        from kalavai_nb.worker.readings.amd import Amd, bus_address
        from kalavai_nb.worker.readings.driver import DriverReader

        return DriverReader(Amd(bus_address(device)))
    if device.kind == "mps":
        from kalavai_nb.worker.readings.apple import AppleReader

        return AppleReader()
    from kalavai_nb.worker.readings.cpu import CpuReader

    return CpuReader(device.memory_bytes, pids, parts)
