"""The GPU of an Apple machine. Without root it says how busy it is, and nothing of temperature, power or processes."""

from __future__ import annotations

import plistlib
import subprocess
from typing import Any

import psutil

from kalavai_nb.reading import Reading

# as property lists, the GPUs of the machine with nothing below them
COMMAND = ("ioreg", "-a", "-r", "-d", "1", "-c", "IOAccelerator")
PATIENCE_SECONDS = 2.0


class AppleReader:
    """How busy the GPU is, by ``ioreg``; its memory is the machine's."""

    def read(self) -> Reading:
        machine = psutil.virtual_memory()
        try:
            done = subprocess.run(COMMAND, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
            busy = utilisation(done.stdout)
        except Exception:  # nothing that ioreg does or says may end the readings
            busy = None
        return Reading(
            memory_used_bytes=machine.total - machine.available,
            memory_total_bytes=machine.total,
            utilisation=busy,
            note="unified memory" if busy is not None else "unified memory; ioreg gives no utilisation",
        )

    def close(self) -> None:
        pass


def utilisation(answer: bytes) -> float | None:
    """How busy the busiest GPU in an answer of ``ioreg`` is, 0..1; None where it says nothing of it."""
    found: list[dict[str, Any]] = plistlib.loads(answer) if answer.strip() else []
    percents = [gpu.get("PerformanceStatistics", {}).get("Device Utilization %") for gpu in found]
    known = [percent for percent in percents if percent is not None]
    return min(1.0, max(known) / 100) if known else None
