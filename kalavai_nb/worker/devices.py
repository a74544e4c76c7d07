"""What devices this machine has. Knows neither Dask nor who asks."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

from kalavai_nb.state import Device, machine_id

STAND_INS = 4


def local_devices(count: int | None = None) -> list[Device]:
    """The GPUs of this machine; where it has none, CPU stand-ins (``count`` of them, else 4).

    With GPUs, ``count`` takes the first so many, and asking for more raises ValueError.
    """
    gpus = cuda_devices() or mps_devices()
    if not gpus:
        return cpu_stand_ins(STAND_INS if count is None else count)
    if count is not None and count > len(gpus):
        raise ValueError(f"asked for {count} devices, but this machine has {len(gpus)}: {', '.join(map(str, gpus))}")
    return gpus[:count]


def cuda_devices() -> list[Device]:
    """NVIDIA GPUs by NVML, minding CUDA_VISIBLE_DEVICES; none where there is no driver or it does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_cuda_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    wanted = [entry.strip() for entry in visible.split(",")]
    return [device for device in found if str(device.index) in wanted or device.selector in wanted]


def mps_devices() -> list[Device]:
    """The GPU of an Apple machine. It shares the machine's memory."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return []
    return [_device(0, "mps", platform.processor() or "Apple GPU", _memory_bytes())]


def cpu_stand_ins(count: int) -> list[Device]:
    """Processes that take the place of GPUs. They share the machine's cores and memory, and say so."""
    name = _cpu_name()
    return [_device(index, "cpu", name, _memory_bytes() // count) for index in range(count)]


def _device(index: int, kind: str, name: str, memory_bytes: int, selector: str = "") -> Device:
    machine = machine_id()
    unique = selector or f"{machine}/{kind}:{index}"
    return Device(unique, index, kind, name, socket.gethostname(), machine, memory_bytes, selector)


def _cuda_device(pynvml: object, index: int) -> Device:
    nvml = pynvml
    handle = nvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    name, uuid_text = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)  # type: ignore[attr-defined]
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total  # type: ignore[attr-defined]
    return _device(index, "cuda", name, memory, uuid_text)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
