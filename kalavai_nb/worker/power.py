"""The most power a device may take: asked of its driver where that obeys us, else kept in the mean by pauses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kalavai_nb.reading import Reading
from kalavai_nb.state import Device

LOOK_SECONDS = 0.2
# a pause is no longer, and between two of them work goes on for at least so long
LONGEST_PAUSE_SECONDS = 0.8
LEAST_WORK_SECONDS = 0.2
# so much of a second's energy may be saved up while a device idles, or owed while it works
MOST_SAVED_SECONDS = 2.0
MOST_OWED_SECONDS = 4.0


def why_no_power_limit(device: Device) -> str:
    """Why the power of this device cannot be limited, for its owner; empty where it can."""
    from kalavai_nb.worker.readings import reader_of

    if device.kind in ("cuda", "rocm"):
        reader = reader_of(device, lambda: ())
        reading = reader.read()
        reader.close()
        if reading.power_watts is not None:
            return ""
        why = f"its driver does not say how much it takes{f' ({reading.note})' if reading.note else ''}"
    else:
        why = "how much it takes cannot be read here"
    return f"--max-power cannot be kept on {device}: {why}. Leave it out, or lend other devices with --gpus."


class DriverLimit:
    """The limit that the driver of an NVIDIA GPU keeps by itself, and what it was before.

    Only root may set it. What it was is in a file too, so that a worker that is started again after a kill puts back
    what was there before the first one.
    """

    def __init__(self, device: Device, directory: Path) -> None:
        self._device = device
        self._file = directory / f"power-{device.index}.json"

    def set(self, watts: float) -> str:
        """Empty where the driver keeps it from now on; else why not."""
        if self._device.kind != "cuda":
            return "only NVIDIA's driver is asked to"
        try:
            return str(self._with_handle(lambda nvml, handle: self._set(nvml, handle, watts)))
        except Exception as error:  # no permission, an old driver, an instance of a GPU
            return str(error) or type(error).__name__

    def restore(self) -> None:
        """Put back what it was."""
        with contextlib.suppress(Exception):
            before = int(json.loads(self._file.read_text()))
            self._with_handle(lambda nvml, handle: nvml.nvmlDeviceSetPowerManagementLimit(handle, before))
            self._file.unlink()

    def _set(self, nvml: Any, handle: Any, watts: float) -> str:
        lowest, highest = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        if not self._file.exists():
            self._file.write_text(json.dumps(nvml.nvmlDeviceGetPowerManagementLimit(handle)))
        wanted = int(1000 * watts)
        try:
            nvml.nvmlDeviceSetPowerManagementLimit(handle, min(max(wanted, lowest), highest))
        except Exception:
            self._file.unlink(missing_ok=True)
            raise
        return f"its driver goes no lower than {lowest / 1000:g} W" if wanted < lowest else ""

    def _with_handle(self, call: Callable[[Any, Any], Any]) -> Any:
        from kalavai_nb.worker.readings.nvml import Nvml

        driver = Nvml(self._device.selector)
        handle = driver.open()
        try:
            import pynvml

            return call(pynvml, handle)
        finally:
            driver.shut()


class Pauses:
    """Keeps the mean power of a device under a limit, by stopping ``groups`` of processes for parts of a second.

    Energy is counted: what the limit allows comes in, what the device takes goes out, and while more went out than came
    in, nothing runs. A process of its own does the stopping: it lets go when it hears nothing more, so no end of a
    worker leaves anything stopped.
    """

    def __init__(self, read: Callable[[], Reading], groups: Callable[[], Iterable[int]], watts: float) -> None:
        self._read, self._groups, self.watts = read, groups, watts
        self._closed = threading.Event()
        self._pauser = _Pauser()
        self._thread = threading.Thread(target=self._run, name="kalavai-power", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let everything run."""
        self._closed.set()
        self._pauser.close()

    def _run(self) -> None:
        budget, before = Budget(), time.monotonic()
        while not self._closed.wait(LOOK_SECONDS):
            power = self._read().power_watts
            now = time.monotonic()
            seconds, before = now - before, now
            if power is not None:
                # the pauser ends a pause that we do not ask for again
                pause = budget.pause(power, self.watts, seconds)
                self._pauser.say(self._groups() if pause else ())


class Budget:
    """Energy that may still be spent, in joules. Pure."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._is_paused, self._since_seconds = False, 0.0

    def pause(self, power_watts: float, limit_watts: float, seconds: float) -> bool:
        """After so many seconds at this power, whether to pause until it is asked again."""
        joules = self._joules + (limit_watts - power_watts) * seconds
        self._joules = min(MOST_SAVED_SECONDS * limit_watts, max(-MOST_OWED_SECONDS * limit_watts, joules))
        self._since_seconds += seconds
        if self._is_paused:
            # what takes more than the limit even while it does nothing still gets on, slowly
            ends = self._joules >= 0 or self._since_seconds >= LONGEST_PAUSE_SECONDS - LOOK_SECONDS / 2
        else:
            ends = self._joules < 0 and self._since_seconds >= LEAST_WORK_SECONDS
        if ends:
            self._is_paused, self._since_seconds = not self._is_paused, 0.0
        return self._is_paused


class _Pauser:
    """The process that stops others: it is told, each time, which groups are to be stopped now."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped: tuple[int, ...] = ()

    def say(self, groups: Iterable[int]) -> None:
        wanted = tuple(groups)
        if not wanted and not self._stopped:
            return
        self._stopped = wanted
        try:
            pipe = self._start().stdin
            assert pipe is not None
            pipe.write(" ".join(map(str, wanted)).encode() + b"\n")
            pipe.flush()
        except OSError:
            # it was killed: what it had stopped goes on, and the next word starts another
            self._process = None
            _signal(wanted, signal.SIGCONT)
            self._stopped = ()

    def close(self) -> None:
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LONGEST_PAUSE_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("pauser.py"))]
            # in a session of its own: what ends the worker's does not end it before it has let go
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
        return self._process


def _signal(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
