"""AMD GPUs, by the library of ROCm: amdsmi, which comes with a driver rather than from a package index."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from kalavai_nb.reading import Process, Reading
from kalavai_nb.state import Device
from kalavai_nb.worker.readings.processes import largest
from kalavai_nb.worker.readings.questions import Questions

# amdsmi_status_t: not supported, not yet implemented, no data
ABSENT = (2, 3, 40)


def bus_address(device: Device) -> str:
    """Where a GPU sits, such as ``0000:03:00.0``: what an id has after its machine, and what no reset changes."""
    return device.id.rpartition("/rocm:")[2]


class Amd:
    """amdsmi for the GPU at one bus address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def open(self) -> Any:
        import amdsmi

        amdsmi.amdsmi_init()
        try:
            return amdsmi.amdsmi_get_processor_handle_from_bdf(self._address)
        except amdsmi.AmdSmiException:
            self.shut()
            raise

    def shut(self) -> None:
        import amdsmi

        with contextlib.suppress(amdsmi.AmdSmiException):
            amdsmi.amdsmi_shut_down()

    def reason(self, error: Exception) -> str:
        if getattr(error, "err_code", None) in ABSENT or isinstance(error, AttributeError | _Absent):
            return ""
        described = getattr(error, "err_info", None)
        # "AMDSMI_STATUS_BUSY - Device busy"
        return str(described).rpartition(" - ")[2] if described else str(error)

    def read(self, handle: Any, questions: Questions) -> Reading:
        import amdsmi as smi

        memory = questions.ask("memory", lambda: smi.amdsmi_get_gpu_vram_usage(handle)) or {}
        return Reading(
            memory_used_bytes=memory["vram_used"] << 20 if memory else None,
            memory_total_bytes=memory["vram_total"] << 20 if memory else None,
            utilisation=questions.ask(
                "utilisation", lambda: min(1.0, _number(smi.amdsmi_get_gpu_activity(handle), "gfx_activity") / 100)
            ),
            temperature_celsius=questions.ask(
                "temperature",
                # cards for data centres have no sensor at the edge
                lambda: _temperature(smi, handle, smi.AmdSmiTemperatureType.EDGE),
                lambda: _temperature(smi, handle, smi.AmdSmiTemperatureType.HOTSPOT),
            ),
            power_watts=questions.ask(
                "power",
                lambda: _number(
                    smi.amdsmi_get_power_info(handle), "socket_power", "current_socket_power", "average_socket_power"
                ),
            ),
            power_limit_watts=questions.ask(
                "power limit", lambda: _number(smi.amdsmi_get_power_cap_info(handle), "power_cap") / 1e6
            ),
            processes=largest(map(_process, questions.ask("processes", lambda: _process_list(smi, handle)) or ())),
        )


class _Absent(Exception):
    """The library says N/A."""


def _number(answer: dict[str, Any], *names: str) -> float:
    """The first of these that is a number: names differ between versions and cards, and the rest is "N/A"."""
    for name in names:
        # 0 watts is what cards say that have only another of the sensors
        if isinstance(value := answer.get(name), int | float) and (value or name == names[-1]):
            return float(value)
    raise _Absent


def _temperature(smi: Any, handle: Any, sensor: Any) -> float:
    return float(smi.amdsmi_get_temp_metric(handle, sensor, smi.AmdSmiTemperatureMetric.CURRENT))


def _process_list(smi: Any, handle: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = smi.amdsmi_get_gpu_process_list(handle)
    return found


def _process(found: dict[str, Any]) -> Process:
    name = "" if found["name"] == "N/A" else os.path.basename(found["name"])
    memory = found.get("memory_usage", {}).get("vram_mem") or found["mem"]
    return Process(found["pid"], name, memory)
