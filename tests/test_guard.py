"""What an owner lends is kept while people work, on real children; and it changes while they do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

import kalavai_nb as kn
import nvml
from kalavai_nb.errors import RankDied, TrialError
from kalavai_nb.lending.limits import Limits
from kalavai_nb.state import Device
from kalavai_nb.worker.child import MEMORY_FRACTION
from kalavai_nb.worker.devices import local_devices
from kalavai_nb.worker.guard import Guard
from kalavai_nb.worker.power import Budget, why_no_power_limit
from lender import Lender

MIB = 2**20
SECONDS = 30.0
GPU = "GPU-00000000-0000-0000-0000-000000000000"
CARD = Device(GPU, 0, "cuda", "RTX 4090", "box", "box-1", 24 << 30, GPU)
# as exact as it takes to tell the two apart
OVER = (
    r"was ended: it used [\d.]+ GB( \(all that runs there: [\d.]+ GB\))?, "
    r"over the (0\.50*|8\.0) GB that the owner of .+ lends"
)


@pytest.fixture(scope="module")
def lender() -> Iterator[Lender]:
    with kn.Pool(devices=1, quiet=True) as pool:
        yield Lender(pool)


def test_a_cell_that_takes_more_than_is_lent(lender: Lender) -> None:
    lender.pool.run("x = 1")
    device = lender.lend(memory="512MB")
    assert (device.memory_bytes, device.limits) == (512 * MIB, "0.5 GiB of memory")
    with pytest.raises(RankDied, match=OVER) as died:
        lender.pool.run("y = bytearray(900 << 20); import time; time.sleep(60)")
    assert "Lost with it: x" in str(died.value)
    # what is lent can be used
    lender.pool.run("y = bytearray(200 << 20)")


def greedy(mebibytes: int) -> int:
    content = bytearray(mebibytes << 20)
    time.sleep(60 if mebibytes > 512 else 0)
    return len(content)


def test_a_trial_that_takes_more_than_is_lent(lender: Lender) -> None:
    lender.lend(memory="512MB")
    sweep = lender.pool.map(greedy, [1, 900, 2], show=False)
    sweep.wait()
    assert [sweep[index].value for index in range(3)] == [MIB, None, 2 * MIB]
    assert isinstance(sweep[1].error, TrialError)
    assert re.search("its process " + OVER, str(sweep[1].error))


def test_what_is_lent_again_can_be_used(lender: Lender) -> None:
    lender.lend(memory="512MB")
    device = lender.lend(hours="Mon-Sun", when_idle=True)
    assert (device.memory_bytes, device.limits) == (lender.devices[0].memory_bytes, "Mon-Sun; when idle")
    assert lender.pool.map(greedy, [500], show=False)[0].value == 500 * MIB
    assert any("is lent with other limits" in event.text for event in lender.pool.snapshot().events)


def test_torch_is_told_before(lender: Lender) -> None:
    """On a GPU; here a rank of a stand-in is given the environment that one of a GPU would find."""
    environment = {"OMP_NUM_THREADS": "1"}
    guard = Guard(CARD, Limits.parse({"memory": "50%"}).order(CARD), environment, Path())
    fraction = float(environment[MEMORY_FRACTION])
    assert fraction == pytest.approx(0.5 - 600 / (24 << 10), abs=1e-4), "half of it, less what a context needs"
    lender.lend()
    code = f"""
import torch
from kalavai_nb.worker.child import _limit_memory
told = []
torch.cuda.set_per_process_memory_fraction = lambda *arguments: told.append(arguments)
_limit_memory({environment!r})
torch.cuda._queued_calls[-1][0]()
"""
    assert lender.pool.run(code, out="told") == {"told": [[(fraction, 0)]]}
    guard.limits = {}
    guard._tell_torch()
    assert environment == {"OMP_NUM_THREADS": "1"}


# power


def test_energy_over_time_is_what_the_limit_allows() -> None:
    for active, idle, limit, mean in (
        (300, 50, 150, 150),
        (300, 50, 400, 300),
        (300, 50, 280, 280),
        (300, 90, 80, 132),
    ):
        budget, paused, joules = Budget(), False, 0.0
        for _ in range(600):
            power = idle if paused else active
            joules += power * 0.2
            paused = budget.pause(power, limit, 0.2)
        assert joules / 120 == pytest.approx(mean, rel=0.05), (active, idle, limit)


# limits the power of a device, and says whether it can be and what its driver answered; until its input ends
LIMITING = """
import json, sys
from pathlib import Path
from kalavai_nb.state import Device
from kalavai_nb.worker.power import DriverLimit, Pauses, why_no_power_limit
from kalavai_nb.worker.readings import reader_of

device, watts, group = Device(**json.loads(sys.argv[1])), float(sys.argv[3]), int(sys.argv[4])
limit = DriverLimit(device, Path(sys.argv[2]))
print(json.dumps([why_no_power_limit(device), limit.set(watts)]), flush=True)
pauses = Pauses(reader_of(device, lambda: ()).read, lambda: [group], watts) if group else None
sys.stdin.read()
limit.restore()
"""


class Limiting:
    """A process that limits the power of a stub's first GPU. ``able`` and ``answer`` are empty where all is well."""

    def __init__(self, stub: Path, directory: Path, watts: float, group: int = 0, **settings: object) -> None:
        arguments = (json.dumps(asdict(CARD)), str(directory), str(watts), str(group))
        self._process = subprocess.Popen(
            [sys.executable, "-c", LIMITING, *arguments],
            env=nvml.environment(stub, **settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.able, self.answer = json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build_stub(tmp_path_factory.mktemp("nvml"))


def test_the_driver_keeps_it_where_it_may_be_told(stub: Path, tmp_path: Path) -> None:
    first = Limiting(stub, tmp_path, 250, may_limit=1)
    assert (first.able, first.answer) == ("", "")
    assert nvml.power_limit(stub) == 250_000
    # the next one knows what was there before the first, however that one ended
    first.kill()
    second = Limiting(stub, tmp_path, 200, may_limit=1)
    assert nvml.power_limit(stub) == 200_000
    second.end()
    assert nvml.power_limit(stub) == 350_000
    low = Limiting(stub, tmp_path, 80, may_limit=1)
    assert (low.able, low.answer) == ("", "its driver goes no lower than 100 W")
    assert nvml.power_limit(stub) == 100_000
    low.end()
    assert nvml.power_limit(stub) == 350_000
    barred = Limiting(stub, tmp_path, 250)
    assert (barred.able, bool(barred.answer)) == ("", True)
    assert nvml.power_limit(stub) == 350_000
    barred.end()


def test_else_work_pauses_for_parts_of_a_second(stub: Path, tmp_path: Path) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    process = psutil.Process(busy.pid)
    try:
        settings = {"busy_pid": busy.pid, "power_mw": 300_000, "idle_power_mw": 50_000}
        limiting = Limiting(stub, tmp_path, 150, busy.pid, **settings)
        looks, stopped, longest, since = 0, 0, 0.0, None
        until = time.monotonic() + 5
        while (now := time.monotonic()) < until:
            looks += 1
            if process.status() == psutil.STATUS_STOPPED:
                stopped += 1
                since = since or now
                longest = max(longest, now - since)
            else:
                since = None
            time.sleep(0.01)
        # 300 W for 0.4 of the time and 50 W for the rest is 150 W
        assert 1 - stopped / looks == pytest.approx(0.4, abs=0.12)
        assert longest < 1.5
        # whoever guards it is killed in the middle of a pause
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.005)
        limiting.kill()
        deadline = time.monotonic() + SECONDS
        while process.status() == psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        busy.kill()
        busy.wait()


def test_where_it_cannot_be_read_it_cannot_be_limited(stub: Path, tmp_path: Path) -> None:
    stand_in = local_devices(1)[0]
    assert why_no_power_limit(stand_in) == (
        f"--max-power cannot be kept on {stand_in}: how much it takes cannot be read here. "
        "Leave it out, or lend other devices with --gpus."
    )
    mute = Limiting(stub, tmp_path, 250, **{"fail.nvmlDeviceGetPowerUsage": 3})
    assert "its driver does not say how much it takes" in mute.able
    mute.end()


# a pool with a GPU of the stub, whose owner lends a part of it; what a rank there finds, and how it ends
ON_A_GPU = """
import json, sys
from pathlib import Path
import kalavai_nb as kn
import nvml
from kalavai_nb.errors import RankDied
from lender import Lender

stub = Path(sys.argv[1])
with kn.Pool(devices=1, quiet=True) as pool:
    device = Lender(pool).lend(memory="8GB", max_power="250")
    rank = pool.run("import os; fraction = os.environ.get('KALAVAI_MEMORY_FRACTION')", out="fraction")
    try:
        pool.run(
            "import nvml, pathlib, time;"
            f"nvml.change(pathlib.Path({str(stub)!r}), compute=f'{{os.getpid()}}:9000'); time.sleep(60)"
        )
    except RankDied as error:
        said = str(error)
    print(json.dumps([device.memory_bytes, device.limits, rank["fraction"][0], said, nvml.power_limit(stub)]))
"""


def test_a_gpu_with_all_of_it(stub: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ON_A_GPU, str(stub)],
        env={**nvml.environment(stub, may_limit=1, count=1), "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    memory, limits, fraction, said, power = json.loads(ran.stdout.splitlines()[-1])
    assert (memory, limits) == (8 << 30, "8 GiB of memory; at most 250 W")
    assert float(fraction) == pytest.approx((8192 - 600) / 24576, abs=1e-3)
    assert re.search(OVER, said)
    assert "used 8.8 GB" in said
    assert power == 250_000
    assert nvml.power_limit(stub) == 350_000, "what it was is put back"
