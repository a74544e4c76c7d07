"""NVIDIA GPUs and their MIG instances, by NVML.

NVML may give process ids as the machine counts them: in a container they are not its own. A name is shown for those
that can be seen from here.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, NamedTuple

import psutil

from kalavai_nb.reading import Process, Reading
from kalavai_nb.worker.readings.processes import largest, named
from kalavai_nb.worker.readings.questions import Questions

MIG = "MIG-"
UNIFIED = "unified memory"


class Memory(NamedTuple):
    """Memory of a GPU in bytes; ``unified`` where it is the machine's."""

    used: int
    total: int
    unified: bool


class Nvml:
    """NVML for one device. ``selector`` is its UUID, or its number where the driver gives no UUID."""

    def __init__(self, selector: str) -> None:
        self._selector = selector

    def open(self) -> Any:
        import pynvml

        pynvml.nvmlInit()
        try:
            if self._selector.isdigit():
                return pynvml.nvmlDeviceGetHandleByIndex(int(self._selector))
            return pynvml.nvmlDeviceGetHandleByUUID(self._selector)
        except pynvml.NVMLError:
            self.shut()
            raise

    def shut(self) -> None:
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def reason(self, error: Exception) -> str:
        import pynvml

        absent = (
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        )
        # AttributeError: a nvidia-ml-py that is older than the function
        if getattr(error, "value", None) in absent or isinstance(error, AttributeError):
            return ""
        return str(error)

    def read(self, handle: Any, questions: Questions) -> Reading:
        return (_instance if self._selector.startswith(MIG) else _whole)(handle, questions)


def _instance(handle: Any, questions: Questions) -> Reading:
    memory = questions.ask("memory", lambda: memory_of(handle, can_be_unified=False))
    return Reading(
        memory_used_bytes=memory and memory.used,
        memory_total_bytes=memory and memory.total,
        processes=_processes(handle, questions),
        note="MIG: the driver gives utilisation, temperature and power of the whole GPU only",
    )


def _whole(handle: Any, questions: Questions) -> Reading:
    import pynvml as nvml

    split = is_split(handle)
    memory = questions.ask("memory", lambda: memory_of(handle))
    return Reading(
        memory_used_bytes=memory and memory.used,
        memory_total_bytes=memory and memory.total,
        utilisation=None if split else questions.ask("utilisation", lambda: _utilisation(handle)),
        temperature_celsius=questions.ask(
            "temperature",
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            # what newer drivers have instead
            lambda: float(nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU)),
        ),
        power_watts=questions.ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        power_limit_watts=questions.ask("power limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        processes=_processes(handle, questions),
        note=UNIFIED if memory and memory.unified else "MIG: no utilisation of the whole GPU" if split else "",
    )


def memory_of(handle: Any, can_be_unified: bool = True) -> Memory:
    """The memory behind a handle. Raises NVMLError.

    A GPU that shares its machine's memory (GB10, Jetson) has no number of its own: "not supported", or zero.
    """
    import pynvml as nvml

    info = None
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        # drivers before 510 count what they keep for themselves as used
        try:
            info = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError_NotSupported:
            if not can_be_unified:
                raise
    if info is None or (can_be_unified and not info.total):
        machine = psutil.virtual_memory()
        return Memory(machine.total - machine.available, machine.total, True)
    return Memory(info.used, info.total, False)


def is_split(handle: Any) -> bool:
    """Whether a GPU is in MIG mode: then only its instances can be used."""
    import pynvml as nvml

    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _utilisation(handle: Any) -> float:
    """How much of the last moment some kernel ran, 0..1."""
    import pynvml as nvml

    return min(1.0, float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100)


def _processes(handle: Any, questions: Questions) -> tuple[Process, ...]:
    import pynvml as nvml

    found = {}
    for sort in ("Graphics", "Compute"):
        ways = [getattr(nvml, f"nvmlDeviceGet{sort}RunningProcesses_{version}") for version in ("v3", "v2")]
        for process in questions.ask("processes", *(partial(way, handle) for way in ways)) or ():
            found[process.pid] = named(process.pid, process.usedGpuMemory)
    return largest(found.values())
