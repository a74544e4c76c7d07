"""What devices this machine has. Knows neither Dask nor who asks.

A GPU that does not answer some question is a device all the same, as long as there is a way to select it. Where a
library is missing, half installed or without its driver, there are no devices of its kind.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kalavai_nb.errors import NotEnoughDevices
from kalavai_nb.state import Device, machine_id

STAND_INS = 4
GPU_NAMES = {"cuda": "NVIDIA GPU", "rocm": "AMD GPU"}

T = TypeVar("T")


def local_devices(count: int | None = None) -> list[Device]:
    """The GPUs of this machine; where it has none, CPU stand-ins (``count`` of them, else 4).

    With GPUs, ``count`` takes the first so many, and asking for more raises NotEnoughDevices.
    """
    gpus = cuda_devices() or rocm_devices() or mps_devices()
    if not gpus:
        return cpu_stand_ins(STAND_INS if count is None else count)
    if count is not None and count > len(gpus):
        there = ", ".join(map(str, gpus))
        raise NotEnoughDevices(f"asked for {count} devices, but this machine has {len(gpus)}: {there}")
    return gpus[:count]


def cuda_devices() -> list[Device]:
    """NVIDIA GPUs by NVML, minding CUDA_VISIBLE_DEVICES; none where there is no driver or it does not answer.

    A GPU in MIG mode is as many devices as it has instances, and CUDA_VISIBLE_DEVICES may name it or some of them.
    """
    return [each.device for each in _visible_cuda()]


def offered_devices() -> list[Device]:
    """What a worker that others started may lend, its own first: dask-cuda shows each all GPUs, beginning with it."""
    entries = _entries("CUDA_VISIBLE_DEVICES") or []
    gpus = sorted(_visible_cuda(), key=lambda each: each.place(entries) or 0)
    return [each.device for each in gpus] or rocm_devices() or mps_devices() or cpu_stand_ins(1)


def reachable_gpus() -> list[str]:
    """The ids of all GPUs that this process could select, whatever it is told to see."""
    found = _listed("pynvml", "nvmlInit", "nvmlShutdown", _nvidia)
    found += _listed("amdsmi", "amdsmi_init", "amdsmi_shut_down", _amd)
    return [each.device.id for each in found]


def rocm_devices() -> list[Device]:
    """AMD GPUs by amdsmi, minding ROCR_, HIP_ and CUDA_VISIBLE_DEVICES; none where there is no ROCm.

    Their ``selector`` is what HIP_VISIBLE_DEVICES needs. That counts what ROCR_VISIBLE_DEVICES shows, where it is set.
    """
    found = _listed("amdsmi", "amdsmi_init", "amdsmi_shut_down", _amd)
    shown = _entries("ROCR_VISIBLE_DEVICES")
    if shown is not None:
        found = [each.selected(str(place)) for each in found if (place := each.place(shown)) is not None]
    wanted = _entries("HIP_VISIBLE_DEVICES")
    entries = _entries("CUDA_VISIBLE_DEVICES") if wanted is None else wanted
    return [each.device for each in found if each.is_among(entries)]


def mps_devices() -> list[Device]:
    """The GPU of an Apple machine. It shares the machine's memory."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return []
    return [_device(0, "mps", _cpu_name() or "Apple GPU", _memory_bytes())]


def cpu_stand_ins(count: int) -> list[Device]:
    """Processes that take the place of GPUs. They share the machine's cores and memory, and say so."""
    name = _cpu_name()
    return [_device(index, "cpu", name, _memory_bytes() // count) for index in range(count)]


def visible(device: Device, selectors: Sequence[str] | None = None) -> dict[str, str]:
    """What a process has in its environment so that it sees these devices alone, of the kind of this one."""
    seen = ",".join([device.selector] if selectors is None else selectors)
    if device.kind == "rocm":
        # an inherited CUDA_VISIBLE_DEVICES is obeyed there as well
        return {"HIP_VISIBLE_DEVICES": seen, "CUDA_VISIBLE_DEVICES": seen}
    return {"CUDA_VISIBLE_DEVICES": seen} if device.kind in ("cuda", "cpu") else {}


class _Found(NamedTuple):
    """A GPU and what it may be called in a list of visible devices: numbers, and UUIDs that may be cut short."""

    device: Device
    names: tuple[str, ...]

    def is_among(self, entries: list[str] | None) -> bool:
        return entries is None or self.place(entries) is not None

    def place(self, entries: list[str]) -> int | None:
        """Where a list of visible devices names it."""
        for place, entry in enumerate(entries):
            if any(name == entry or ("-" in entry and name.startswith(entry)) for name in self.names):
                return place
        return None

    def selected(self, selector: str) -> _Found:
        return _Found(replace(self.device, selector=selector), (selector, *self.names[1:]))


def _visible_cuda() -> list[_Found]:
    entries = _entries("CUDA_VISIBLE_DEVICES")
    found = _listed("pynvml", "nvmlInit", "nvmlShutdown", _nvidia)
    return [each for each in found if each.is_among(entries)]


def _entries(variable: str) -> list[str] | None:
    """What a variable that limits the visible devices lists; None where it is not set."""
    value = os.environ.get(variable)
    return None if value is None else [entry.strip() for entry in value.split(",") if entry.strip()]


def _listed(package: str, start: str, stop: str, devices: Callable[[Any], list[_Found]]) -> list[_Found]:
    """What ``devices`` makes of a driver's library, which is there for so long."""
    try:
        # amdsmi prints where its library is missing
        with contextlib.redirect_stdout(io.StringIO()):
            library = importlib.import_module(package)
        getattr(library, start)()
    except Exception:  # not installed, no driver, or one that breaks in a way that nobody has seen
        return []
    try:
        return devices(library)
    except Exception:
        return []
    finally:
        with contextlib.suppress(Exception):
            getattr(library, stop)()


def _nvidia(nvml: Any) -> list[_Found]:
    from kalavai_nb.worker.readings.nvml import is_split

    found: list[_Found] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = _answer(None, nvml.nvmlDeviceGetHandleByIndex, number)
        if handle is None:
            continue  # lost: nothing can be said of it, nor run on it
        whole = _nvidia_device(nvml, handle, len(found), str(number))
        names = (str(number), whole.selector)
        if not _answer(False, is_split, handle):
            found.append(_Found(whole, names))
            continue
        for place in range(_answer(0, nvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
            instance = _answer(None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            device = instance and _nvidia_device(nvml, instance, len(found), "", named_after=whole.name)
            if device and device.selector:
                found.append(_Found(device, (device.selector, *names)))
    return found


def _nvidia_device(nvml: Any, handle: Any, index: int, number: str, named_after: str = "") -> Device:
    """One handle as a device: the GPU ``number`` of NVML, or an instance of the one that is ``named_after``."""
    from kalavai_nb.worker.readings.nvml import memory_of

    name = _answer(GPU_NAMES["cuda"], nvml.nvmlDeviceGetName, handle)
    if named_after and "MIG" not in name:
        name = f"{named_after} {_profile(nvml, handle)}"
    unique = _answer("", nvml.nvmlDeviceGetUUID, handle)
    memory = _answer(None, memory_of, handle, not named_after)
    return _device(index, "cuda", name, memory.total if memory else 0, unique or number, unique)


def _profile(nvml: Any, handle: Any) -> str:
    """What an instance is called, such as "MIG 1g.10gb", where its driver does not say it in its name."""
    attributes = _answer(None, nvml.nvmlDeviceGetAttributes, handle)
    if attributes is None:
        return "MIG"
    return f"MIG {attributes.gpuInstanceSliceCount}g.{round(attributes.memorySizeMB / 1024)}gb"


def _amd(smi: Any) -> list[_Found]:
    return [_amd_device(smi, index, handle) for index, handle in enumerate(smi.amdsmi_get_processor_handles())]


def _amd_device(smi: Any, index: int, handle: Any) -> _Found:
    address = _answer(str(index), smi.amdsmi_get_gpu_device_bdf, handle)
    name = _answer({}, smi.amdsmi_get_gpu_asic_info, handle).get("market_name", "N/A")
    memory = _answer({}, smi.amdsmi_get_gpu_vram_usage, handle).get("vram_total", 0) << 20
    # not in amdsmi before ROCm 6.4
    numbers = _answer({}, lambda: smi.amdsmi_get_gpu_enumeration_info(handle))
    selector = str(index if numbers.get("hip_id", "N/A") == "N/A" else numbers["hip_id"])
    # readings find it by its bus address (readings/amd.py)
    unique = f"{machine_id()}/rocm:{address}"
    device = _device(index, "rocm", GPU_NAMES["rocm"] if name == "N/A" else name, memory, selector, unique)
    return _Found(device, (selector, numbers.get("hip_uuid", "")))


def _answer(otherwise: T | Any, question: Callable[..., T], *arguments: Any) -> T | Any:
    """What a driver answers, or ``otherwise``."""
    try:
        return question(*arguments)
    except Exception:  # of others' libraries, over a driver of any age
        return otherwise


def _device(index: int, kind: str, name: str, memory_bytes: int, selector: str = "", unique: str = "") -> Device:
    machine = machine_id()
    unique = unique or f"{machine}/{kind}:{index}"
    return Device(unique, index, kind, name, socket.gethostname(), machine, memory_bytes, selector)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ("sysctl", "-n", "machdep.cpu.brand_string")
            if name := subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip():
                return name
    return platform.processor() or platform.machine()
