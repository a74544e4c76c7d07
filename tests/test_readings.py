"""What devices say: NVIDIA's through the real binding over a stub of its driver, stand-ins under real load."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import plistlib
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import nvml
from kalavai_nb.reading import Machine, Process, Reading
from kalavai_nb.state import Device
from kalavai_nb.worker.devices import cpu_stand_ins
from kalavai_nb.worker.readings import Reader, reader_of
from kalavai_nb.worker.readings.apple import utilisation
from kalavai_nb.worker.readings.driver import DriverReader
from kalavai_nb.worker.readings.machine import MachineReader
from kalavai_nb.worker.readings.own_memory import OwnMemory
from kalavai_nb.worker.readings.sampler import Sampler, until_next_second

MIB = 1 << 20
GPU = "GPU-00000000-0000-0000-0000-000000000000"
SECOND_GPU = "GPU-00000001-0000-0000-0000-000000000001"
INSTANCE = "MIG-00000000-0000-0000-0000-000000000000"
WELL = {
    "memory_used_bytes": 1024 * MIB,
    "memory_total_bytes": 24576 * MIB,
    "utilisation": 0.37,
    "temperature_celsius": 55.0,
    "power_watts": 123.0,
    "power_limit_watts": 350.0,
}

# reads the device of a selector, in a process that has the stub; a reader is kept from one reading to the next
SCRIPT = """
import json, sys
from kalavai_nb.worker.readings import driver, reader_of
from kalavai_nb.state import Device

driver.RETRY_SECONDS = 0.0
readers = {}
for line in sys.stdin:
    selector = json.loads(line)
    device = Device(selector, 0, "cuda", "", "", "", 0, selector)
    reader = readers.setdefault(selector, reader_of(device, lambda: ()))
    print(json.dumps(reader.read().to_fields()), flush=True)
"""


class Driver:
    """A process that reads GPUs of a stub, whose settings can be changed meanwhile."""

    def __init__(self, stub: Path, **settings: object) -> None:
        self._stub = stub
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=nvml.environment(stub, **settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, selector: str = GPU) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(selector) + "\n")
        self._process.stdin.flush()
        fields: dict[str, Any] = json.loads(self._process.stdout.readline())
        return fields

    def change(self, **settings: object) -> None:
        nvml.change(self._stub, **settings)

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(stub: Path) -> Iterator[Callable[..., Driver]]:
    opened: list[Driver] = []

    def start(**settings: object) -> Driver:
        opened.append(Driver(stub, **settings))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_gpu_that_is_well(driver: Callable[..., Driver]) -> None:
    me = os.getpid()
    gpus = driver(compute=f"{me}:700,999999:-1", graphics=f"{me}:600", **{"gpu1.utilisation": 100})
    processes = [
        {"pid": me, "name": psutil.Process().name(), "memory_bytes": 700 * MIB},
        {"pid": 999999},
    ]
    said = gpus.read()
    assert said.pop("processes") == processes
    assert said == WELL, "what the driver keeps for itself is not in use"
    assert gpus.read(SECOND_GPU)["utilisation"] == 1.0


# function: what its failure makes n/a
FUNCTIONS = {
    "nvmlDeviceGetMemoryInfo_v2": set(),
    "nvmlDeviceGetUtilizationRates": {"utilisation"},
    "nvmlDeviceGetTemperature": set(),
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_watts"},
    "nvmlDeviceGetComputeRunningProcesses_v3": set(),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": set(),
    "nvmlDeviceGetMigMode": set(),
}
CODES = {
    1: "Uninitialized",
    2: "Invalid Argument",
    3: "",
    4: "Insufficient Permissions",
    10: "Timeout",
    13: "",
    15: "GPU is lost",
    25: "",
    999: "Unknown Error",
    12345: "an error of the stub",
}


def test_a_function_that_fails_takes_its_own_field_alone(driver: Callable[..., Driver]) -> None:
    gpu = driver()
    for (function, fields), (code, words) in itertools.product(FUNCTIONS.items(), CODES.items()):
        gpu.change(**{f"fail.{function}": code})
        said = gpu.read()
        gpu.change(**{f"fail.{function}": None})
        note = said.pop("note", "")
        assert said == {name: value for name, value in WELL.items() if name not in fields} or (
            function == "nvmlDeviceGetMemoryInfo_v2" and said == {**WELL, "memory_used_bytes": 1324 * MIB}
        ), (function, code, said)
        assert (words in note) if fields else not note, (function, code, note)
        if fields == {"utilisation"} and not words:
            assert note == "the driver gives no utilisation"


@pytest.mark.parametrize("selector", [GPU, INSTANCE])
def test_a_device_that_answers_nothing_says_why(driver: Callable[..., Driver], selector: str) -> None:
    gpu = driver(**{"gpu0.mig": 1} if selector == INSTANCE else {})
    well = gpu.read(selector)
    functions = ("nvmlInitWithFlags", "nvmlDeviceGetHandleByUUID")
    for function, (code, words) in itertools.product(functions, CODES.items()):
        gpu.change(lost=1)
        assert gpu.read(selector) == {"note": "GPU is lost"}
        gpu.change(lost=None, **{f"fail.{function}": code})
        said = gpu.read(selector)
        assert said == {"note": words or "the driver does not know this device"}, (function, code)
        gpu.change(**{f"fail.{function}": None})
        assert gpu.read(selector) == well, "and is found again"


def test_a_gpu_is_lost_and_comes_back(driver: Callable[..., Driver]) -> None:
    gpus = driver()
    assert gpus.read() == gpus.read(SECOND_GPU) == WELL
    gpus.change(**{"gpu0.lost": 1})
    assert gpus.read() == {"note": "GPU is lost"}
    assert gpus.read(SECOND_GPU) == WELL, "its neighbour is well"
    gpus.change(**{"gpu0.lost": None})
    gpus.change(**{"gpu1.lost": 1})
    gpus.read(SECOND_GPU)
    assert gpus.read() == WELL, "once nobody holds NVML open, a new handle works"


def test_no_question_is_asked_while_a_lost_gpu_rests() -> None:
    asked = []

    class Dead:
        def open(self) -> Any:
            asked.append("open")
            raise OSError("no driver")

        def read(self, handle: Any, questions: Any) -> Reading:
            raise AssertionError

        def shut(self) -> None: ...

        def reason(self, error: Exception) -> str:
            return str(error)

    reader = DriverReader(Dead())
    assert {reader.read().note for _ in range(5)} == {"no driver"}
    assert asked == ["open"]


def test_unified_memory_is_the_machines(driver: Callable[..., Driver]) -> None:
    gpu = driver()
    for how in ({"unified": 1}, {"unified": None, "memory_total_mb": 0}):
        gpu.change(**how)
        said = gpu.read()
        assert said["memory_total_bytes"] == psutil.virtual_memory().total
        assert 0 < said["memory_used_bytes"] < said["memory_total_bytes"]
        assert said["note"] == "unified memory"
        assert said["utilisation"] == WELL["utilisation"]


def test_mig(driver: Callable[..., Driver]) -> None:
    gpu = driver(**{"gpu0.mig": 2, "gpu0.mig0.memory_used_mb": 99, "gpu0.mig0.compute": f"{os.getpid()}:90"})
    said = gpu.read(INSTANCE)
    assert said.pop("processes")[0]["memory_bytes"] == 90 * MIB
    note = "MIG: the driver gives utilisation, temperature and power of the whole GPU only"
    assert said == {"memory_used_bytes": 99 * MIB, "memory_total_bytes": 9856 * MIB, "note": note}
    gpu.change(**{"gpu0.unified": 1})
    assert gpu.read(INSTANCE)["note"] == f"{note}; the driver gives no memory", "no instance has all of the machine's"
    gpu.change(**{"gpu0.unified": None})
    whole = {**WELL, "note": "MIG: no utilisation of the whole GPU"}
    del whole["utilisation"]
    assert gpu.read() == whole


def test_an_old_driver(tmp_path: Path) -> None:
    """Functions that its library does not have at all."""
    missing = (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v2",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetEnforcedPowerLimit",
    )
    old = Driver(nvml.build_stub(tmp_path, without=missing), compute="999999:5")
    try:
        said = old.read()
    finally:
        old.close()
    assert said.pop("processes") == [{"pid": 999999, "memory_bytes": 5 * MIB}]
    assert said == {
        **{name: value for name, value in WELL.items() if name != "power_limit_watts"},
        "memory_used_bytes": 1324 * MIB,
    }


def test_no_driver_at_all() -> None:
    reader = reader_of(Device(GPU, 0, "cuda", "", "", "", 0, GPU), lambda: ())
    assert reader.read() == Reading(note="NVML Shared Library Not Found")
    reader.close()


# the thread


def test_a_driver_that_hangs_holds_up_nobody(stub: Path) -> None:
    """It is silent, everything else in its process goes on, and it is heard again when the call returns."""
    script = f"""
import time, sys
sys.path.insert(0, {str(Path(nvml.__file__).parent)!r})
from pathlib import Path
import nvml
from kalavai_nb.reading import Machine
from kalavai_nb.worker.readings.driver import DriverReader
from kalavai_nb.worker.readings.nvml import Nvml
from kalavai_nb.worker.readings.sampler import Sampler
import threading

heard = threading.Semaphore(0)
stub = Path({str(stub)!r})
reader = DriverReader(Nvml({GPU!r}))
sampler = Sampler(lambda: (reader.read(), Machine("m", "h")), lambda *_: heard.release(), reader.close)
sampler.start()
assert heard.acquire(timeout=60)
nvml.change(stub, **{{"hang.nvmlDeviceGetUtilizationRates": 60}})
while heard.acquire(timeout=1.5):
    pass
print("silent")
nvml.change(stub, **{{"hang.nvmlDeviceGetUtilizationRates": None}})
assert heard.acquire(timeout=60)
nvml.change(stub, **{{"hang.nvmlShutdown": 60}})
before = time.monotonic()
sampler.close()
assert time.monotonic() - before < 1
print("over")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=nvml.environment(stub), capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["silent", "over"], done.stderr


class Heard:
    """What a sampler has said, and when."""

    def __init__(self) -> None:
        self.readings: list[tuple[float, Reading, Machine]] = []
        self._arrived = threading.Condition()

    def __call__(self, reading: Reading, machine: Machine) -> None:
        with self._arrived:
            self.readings.append((time.time(), reading, machine))
            self._arrived.notify_all()

    def wait(self, count: int) -> list[tuple[float, Reading, Machine]]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.readings) >= count, timeout=60)
        return self.readings


def test_readings_come_at_whole_seconds_and_survive_a_bug() -> None:
    heard = Heard()
    rounds = itertools.count()

    def read() -> tuple[Reading, Machine]:
        if next(rounds) == 1:
            raise RuntimeError("a bug")
        return Reading(utilisation=0.5), Machine("m", "h", cores=3)

    ended = threading.Event()
    sampler = Sampler(read, heard, ended.set)
    sampler.start()
    (_, first, machine), (_, bug, same), (third, *_) = heard.wait(3)[:3]
    sampler.close()
    assert ended.wait(60)
    assert (first, bug) == (Reading(utilisation=0.5), Reading(note="cannot be read: a bug"))
    assert machine == same == Machine("m", "h", cores=3)
    assert third % 1 < 0.5, "late only by what this machine is busy"


@pytest.mark.parametrize(
    ("now", "left"),
    [(10.0, 1.0), (10.25, 0.75), (10.85, 0.15), (10.95, 1.05), (10.9999, 1.0001)],
)
def test_each_second_has_one_reading(now: float, left: float) -> None:
    assert until_next_second(now) == pytest.approx(left)


# CPU stand-ins, by real processes


def _burn(begun: Any) -> None:
    begun.set()
    while True:
        sum(range(100_000))


def _hold(begun: Any, mebibytes: int) -> None:
    block = bytearray(os.urandom(1 << 20) * mebibytes)
    begun.set()
    time.sleep(300)
    del block


@pytest.fixture
def children() -> Iterator[Callable[..., int]]:
    """Starts a forked child and waits until it is at work; returns its pid."""
    context = multiprocessing.get_context("forkserver")
    started: list[Any] = []

    def start(target: Callable[..., None], *arguments: Any) -> int:
        begun = context.Event()
        process = context.Process(target=target, args=(begun, *arguments))
        process.start()
        started.append(process)
        assert begun.wait(60)
        assert process.pid
        return process.pid

    yield start
    for process in started:
        for descendant in psutil.Process(process.pid).children(recursive=True):
            descendant.kill()
        process.kill()
        process.join()


def test_a_stand_in_is_as_busy_as_its_processes(children: Callable[..., int]) -> None:
    [device] = cpu_stand_ins(1)
    pids: list[int] = []
    reader = reader_of(device, lambda: pids, parts=1)
    assert reader.read().utilisation is None, "there is nothing to compare with yet"
    assert _eventually(reader, lambda reading: reading.utilisation == 0.0).processes == ()
    pids.append(children(_burn))
    busy = _eventually(reader, lambda reading: (reading.utilisation or 0) > 0.2 / (os.cpu_count() or 1))
    assert [process.pid for process in busy.processes] == pids
    assert busy.processes[0].name
    assert busy.note.startswith("CPU stand-in: its part is ")
    # the same load on a part of the machine
    part = reader_of(device, lambda: pids, parts=100)
    assert _eventually(part, lambda reading: reading.utilisation is not None and reading.utilisation > 0.9)
    pids.clear()
    _eventually(reader, lambda reading: reading.utilisation == 0.0 and not reading.processes)


def test_what_its_processes_start_belongs_to_a_stand_in() -> None:
    [device] = cpu_stand_ins(1)
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True)\\nwhile True: pass'])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as shell:
        try:
            reader = reader_of(device, lambda: [shell.pid], parts=100)
            reader.read()
            assert shell.stdout
            assert shell.stdout.readline()
            busy = _eventually(reader, lambda reading: (reading.utilisation or 0) > 0.9)
            assert len(busy.processes) == 2
        finally:
            for child in psutil.Process(shell.pid).children():
                child.kill()
    # the shell has reaped it and is gone too
    assert _eventually(reader, lambda reading: not reading.processes).memory_used_bytes == 0


def test_memory_that_a_process_takes_is_seen_and_what_it_shares_is_not(children: Callable[..., int]) -> None:
    [device] = cpu_stand_ins(1)
    small, large = children(_hold, 1), children(_hold, 200)
    reader = reader_of(device, lambda: [small, large], parts=1)
    reading = _eventually(reader, lambda reading: (reading.memory_used_bytes or 0) > 195 * MIB)
    assert [process.pid for process in reading.processes] == [large, small]
    assert reading.memory_total_bytes == device.memory_bytes
    # measured one after the other, as time allows
    own = OwnMemory()
    processes = [psutil.Process(pid) for pid in (small, large)]
    deadline = time.monotonic() + 60
    while len(own._shared) < 2 and time.monotonic() < deadline:
        measured = own.of(processes)
        time.sleep(0.02)
    resident = {process.pid: process.memory_info().rss for process in processes}
    assert 200 * MIB < measured[large] <= resident[large]
    assert measured[small] < resident[small], "pages of Python itself are shared"


def test_a_stand_in_with_three_children_costs_little(children: Callable[..., int]) -> None:
    [device] = cpu_stand_ins(1)
    pids = [children(_hold, 20) for _ in range(3)]
    reader = reader_of(device, lambda: pids, parts=1)
    reader.read()
    begun, rounds = time.thread_time(), 20
    for _ in range(rounds):
        reader.read()
    assert (time.thread_time() - begun) / rounds < 0.005


def test_processes_that_are_gone_are_no_trouble() -> None:
    [device] = cpu_stand_ins(1)
    reader = reader_of(device, lambda: [999_999_999], parts=1)
    assert [reader.read().memory_used_bytes for _ in range(2)] == [0, 0]

    def broken() -> list[int]:
        raise RuntimeError("no list")

    assert reader_of(device, broken).read().note == "cannot be read: no list"


def test_a_machine_that_works() -> None:
    reader = MachineReader()
    first = reader.read()
    assert first.utilisation is None
    assert (first.cores, first.memory_bytes) == (len(os.sched_getaffinity(0)), psutil.virtual_memory().total)
    assert 0 < (first.memory_used_bytes or 0) < first.memory_bytes
    deadline = time.monotonic() + 60
    while not (busy := reader.read().utilisation) and time.monotonic() < deadline:
        sum(range(1_000_000))
    assert busy
    assert 0 < busy <= 1


def _eventually(reader: Reader, wanted: Callable[[Reading], bool]) -> Reading:
    deadline = time.monotonic() + 60
    while not wanted(reading := reader.read()):
        assert time.monotonic() < deadline, reading
        time.sleep(0.1)
    return reading


# what cannot be here: answers as these libraries give them


class _AmdError(Exception):
    def __init__(self, code: int, words: str) -> None:
        self.err_code, self.err_info = code, f"AMDSMI_STATUS_X - {words}"


def test_an_amd_gpu_as_amdsmi_describes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against answers of the form that amdsmi documents: that they are understood, which says nothing of a driver."""
    smi: Any = types.ModuleType("amdsmi")
    smi.AmdSmiException = _AmdError
    smi.AmdSmiTemperatureType = types.SimpleNamespace(EDGE=0, HOTSPOT=1)
    smi.AmdSmiTemperatureMetric = types.SimpleNamespace(CURRENT=0)
    smi.amdsmi_init = smi.amdsmi_shut_down = lambda: None
    smi.amdsmi_get_processor_handle_from_bdf = {"0000:03:00.0": "handle"}.__getitem__
    smi.amdsmi_get_gpu_vram_usage = lambda _: {"vram_total": 196592, "vram_used": 283}
    smi.amdsmi_get_gpu_activity = lambda _: {"gfx_activity": 97, "umc_activity": 3, "mm_activity": "N/A"}
    smi.amdsmi_get_power_cap_info = lambda _: {"power_cap": 750_000_000}
    smi.amdsmi_get_power_info = lambda _: {
        "current_socket_power": 140,
        "average_socket_power": "N/A",
        "power_limit": 750,
    }
    smi.amdsmi_get_gpu_process_list = lambda _: [
        {"name": "/usr/bin/python3.11", "pid": 7, "mem": 9, "memory_usage": {"vram_mem": 5 * MIB}},
        {"name": "N/A", "pid": 8, "mem": 6 * MIB, "memory_usage": {"vram_mem": 0}},
    ]

    def temperature(handle: str, sensor: int, metric: int) -> int:
        if sensor == 0:
            raise _AmdError(2, "Feature not supported")
        return 41

    smi.amdsmi_get_temp_metric = temperature
    monkeypatch.setitem(sys.modules, "amdsmi", smi)
    reader = reader_of(Device("host/rocm:0000:03:00.0", 0, "rocm", "", "", "", 0, "0"), lambda: ())
    well = Reading(
        283 * MIB,
        196592 * MIB,
        0.97,
        41.0,
        140.0,
        750.0,
        (Process(8, "", 6 * MIB), Process(7, "python3.11", 5 * MIB)),
    )
    assert reader.read() == well

    def busy(_: str) -> Any:
        raise _AmdError(30, "Device busy")

    smi.amdsmi_get_gpu_activity = busy
    assert reader.read().note == "no utilisation: Device busy"
    smi.amdsmi_get_gpu_activity = lambda _: {"gfx_activity": "N/A"}
    assert reader.read().note == "the driver gives no utilisation"
    reader.close()


def test_an_apple_gpu_as_ioreg_describes_it() -> None:
    statistics = {"Device Utilization %": 12, "In use system memory": 441 << 20}
    assert utilisation(plistlib.dumps([{"IOClass": "AGXAcceleratorG13X", "PerformanceStatistics": statistics}])) == 0.12
    assert utilisation(plistlib.dumps([{"IOClass": "AGXAcceleratorG13X"}])) is None
    assert utilisation(b"") is None
    # there is no ioreg here
    reading = reader_of(Device("m", 0, "mps", "", "", "", 0), lambda: ()).read()
    assert reading.note == "unified memory; ioreg gives no utilisation"
    assert reading.memory_total_bytes == psutil.virtual_memory().total
