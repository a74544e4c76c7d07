"""What happens to a sweep when machines are cut off, freeze, or have wrong clocks, and when the head itself dies.

These take minutes: ``make test-net``.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hosts import Host
from kalavai_nb.errors import KalavaiError
from pooled import Trio, Verb, counting, executions

pytestmark = pytest.mark.patient

TRIALS = 120
TRIAL_SECONDS = 1.0
NOTICED_SECONDS = 12.0
BACK_SECONDS = 30.0
AWAY_SECONDS = 60.0


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    trio = Trio(tmp_path_factory.mktemp("trio"))
    yield trio
    trio.close()


class Swept:
    """A sweep that runs in the notebook, and what becomes of it."""

    def __init__(self, trio: Trio, log: Path, trials: int = TRIALS) -> None:
        self.trio, self.log, self.trials = trio, log, trials
        trio.desk.ok("pool.restart()")
        trio.desk.ok(counting(log, TRIAL_SECONDS))
        trio.desk.ok(f"sweep = pool.map(work, range({trials}), show=False)")
        self.wait_until(lambda: len(executions(log)) >= 12)

    def wait_until(self, is_so: Callable[[], bool], limit: float = 120.0) -> float:
        """Seconds until something is so."""
        began = time.monotonic()
        while not is_so():
            assert time.monotonic() - began < limit
            time.sleep(0.05)
        return time.monotonic() - began

    def runs_on(self, host: Host, since: float) -> bool:
        return any(each.host == host.name and each.began > since for each in executions(self.log))

    def finish(self, lost_at_once: int = 1) -> None:
        """It ends complete, and what ran more than once is what was lost."""
        assert self.trio.desk.value("sweep.values") == [x * 10 for x in range(self.trials)]
        runs = Counter(each.config for each in executions(self.log))
        assert set(runs) == set(range(self.trials))
        assert max(runs.values()) <= 2
        assert runs.total() <= self.trials + lost_at_once


def test_a_machine_that_is_cut_off_for_a_minute(trio: Trio, tmp_path: Path) -> None:
    swept = Swept(trio, tmp_path / "executions")
    trio.near.partition()
    noticed = swept.wait_until(lambda: "near" not in trio.hosts())
    time.sleep(max(0.0, AWAY_SECONDS - noticed))
    trio.near.heal()
    back = swept.wait_until(lambda: "near" in trio.hosts())
    print(f"noticed after {noticed:.1f} s, back after {back:.1f} s")
    swept.finish()
    assert noticed <= NOTICED_SECONDS
    assert back <= BACK_SECONDS


def test_a_machine_behind_a_router_that_is_cut_off_for_a_minute(trio: Trio, tmp_path: Path) -> None:
    swept = Swept(trio, tmp_path / "executions")
    trio.far.partition()
    noticed = swept.wait_until(lambda: "far" not in trio.hosts())
    time.sleep(max(0.0, AWAY_SECONDS - noticed))
    trio.far.heal()
    back = swept.wait_until(lambda: "far" in trio.hosts())
    print(f"noticed after {noticed:.1f} s, back after {back:.1f} s")
    swept.finish()
    assert noticed <= NOTICED_SECONDS
    assert back <= BACK_SECONDS


def test_a_machine_that_is_frozen_for_a_minute(trio: Trio, tmp_path: Path) -> None:
    swept = Swept(trio, tmp_path / "executions")
    trio.near.freeze()
    noticed = swept.wait_until(lambda: "near" not in trio.hosts())
    time.sleep(max(0.0, AWAY_SECONDS - noticed))
    trio.near.thaw()
    back = swept.wait_until(lambda: "near" in trio.hosts())
    print(f"noticed after {noticed:.1f} s, back after {back:.1f} s")
    # what it was at when it froze goes on when it thaws, until it hears that it is not wanted
    swept.finish()
    assert back <= BACK_SECONDS


@pytest.mark.parametrize("what", ["head", "machine"])
def test_a_head_that_is_killed_and_starts_again(trio: Trio, tmp_path: Path, what: str) -> None:
    swept = Swept(trio, tmp_path / "executions")
    killed = time.monotonic()
    if what == "head":
        trio.head().kill()
    else:
        trio.hub.kill()
        trio.pool = Verb(trio.hub, "start", "den", "--devices", "1")
        trio.pool.wait_for("ready")

    def are_back() -> bool:
        with contextlib.suppress(KalavaiError):
            return trio.hosts() == {"far", "hub", "near"}
        return False

    if what == "head":
        swept.wait_until(lambda: not are_back())
    swept.wait_until(are_back)
    back = time.monotonic() - killed
    print(f"all machines are back {back:.1f} s after the head was killed")
    swept.finish(lost_at_once=3)
    assert back <= BACK_SECONDS


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_machine_whose_clock_is_wrong(trio: Trio, tmp_path: Path, hours: int) -> None:
    host = trio.network.host(f"{'behind' if hours < 0 else 'ahead'}")
    host.clock_seconds = hours * 3600
    swept = Swept(trio, tmp_path / "executions", 60)
    joining = trio.join(host)
    joining.wait_for("lent")
    began = time.monotonic()
    swept.wait_until(lambda: swept.runs_on(host, began))
    swept.finish(lost_at_once=0)
    seconds = trio.desk.value(f"[t.seconds for t in sweep.trials if t.device.startswith({host.name!r})]")
    assert seconds
    assert max(seconds) < 60, "how long a trial took is told by one clock"
    joining.interrupt()
    assert joining.end() == 0


def test_a_notebook_whose_clock_is_wrong(trio: Trio, tmp_path: Path) -> None:
    host = trio.network.host("wrong-desk")
    host.clock_seconds = 7200
    source = (
        f"import kalavai_nb as kn\npool = kn.Pool({trio.new_invite('user')!r}, quiet=True)\n"
        "print(pool.map(lambda x: x + 1, range(12), show=False).values)\n"
        "print(pool.run(lambda: 5, gpus=1))\npool.close()"
    )
    assert host.python(source).split("\n")[:2] == [str(list(range(1, 13))), "[5]"]
