"""What an owner lends: what is understood, when it is open, and whether the owner uses the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nvml
from kalavai_nb.errors import OptionError
from kalavai_nb.lending.hours import DAY_MINUTES, Hours, Span
from kalavai_nb.lending.idle import LOAD_LOOKS, IdleWatch
from kalavai_nb.lending.limits import Limits, check, lent
from kalavai_nb.lending.owner import Owner
from kalavai_nb.state import Device

GIB = 2**30
BERLIN = ZoneInfo("Europe/Berlin")
CARD = Device("GPU-0", 0, "cuda", "RTX 4090", "box", "box-1", 24 * GIB, "GPU-0")
STAND_IN = Device("box/cpu:0", 0, "cpu", "EPYC", "box", "box-1", 4 * GIB)
BUSY = "while True: pass"
SLEEP = "import time; time.sleep(600)"


def at(text: str, zone: ZoneInfo | None = None) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


# what is understood


def test_what_is_given_on_the_command_line() -> None:
    limits = Limits.parse(
        {"gpus": "0,1", "memory": "80%", "hours": "22:00-08:00", "when_idle": True, "max_power": "250", "grace": "2m"}
    )
    assert (limits.gpus, limits.memory, limits.when_idle) == ((0, 1), 0.8, True)
    assert (limits.max_power_watts, limits.grace_seconds) == (250.0, 120.0)
    assert limits.describe() == "80 % of memory; 22:00-08:00; when idle; at most 250 W"
    assert limits.lends(CARD)
    assert not limits.lends(replace(CARD, index=2))
    assert lent(CARD, limits) == replace(CARD, memory_bytes=int(24 * GIB * 0.8), limits=limits.describe())
    order = limits.order(CARD)
    assert (order["memory_bytes"], order["whole_bytes"], order["max_power_watts"]) == (
        int(24 * GIB * 0.8),
        24 * GIB,
        250,
    )


def test_no_limits_say_nothing() -> None:
    assert lent(CARD, Limits()) == CARD
    assert Limits.parse({"gpus": None, "memory": "100%"}).describe() == ""
    assert Limits().order(CARD)["memory_bytes"] is None


def test_they_change_one_by_one_and_come_back_from_a_file() -> None:
    limits = Limits.parse({"memory": "8.5GB", "hours": ["Sat-Sun", "Mon-Fri 18:00-8"], "max_power": "250W"})
    assert limits.memory == int(8.5 * GIB)
    assert limits.memory_of(4 * GIB) == 4 * GIB
    assert limits.describe() == "8.5 GiB of memory; Sat-Sun, Mon-Fri 18:00-08:00; at most 250 W"
    assert Limits.from_fields(json.loads(json.dumps(limits.to_fields()))) == limits
    assert Limits.from_fields(Limits().to_fields()) == Limits()
    changed = limits.updated({"memory": "none", "hours": "always", "when_idle": "true"})
    assert changed.describe() == "when idle; at most 250 W"
    assert changed.max_power_watts == 250


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "80"}, "--memory 80 cannot be meant: wanted a part of the memory such as 80%"),
        ({"memory": "0%"}, "more than 0%"),
        ({"memory": "120%"}, "at most 100%"),
        ({"memory": "1MB"}, "too little"),
        ({"gpus": "zero"}, "--gpus zero cannot be meant: wanted indices"),
        ({"gpus": "-1"}, "wanted indices"),
        ({"max_power": "lots"}, "--max-power lots cannot be meant: wanted watts"),
        ({"max_power": "0"}, "wanted watts"),
        ({"grace": "soon"}, "wanted a time such as 30s"),
        ({"grace": "3d"}, "a day at most"),
        ({"when_idle": "perhaps"}, "wanted true or false"),
        ({"memroy": "80%"}, "there is no limit 'memroy'. Did you mean 'memory'?"),
        ({"hours": "nights"}, "there is no day 'nights'"),
        ({"hours": "22:00"}, "wanted spans such as 22:00-08:00"),
        ({"hours": "22:00-22:00"}, "begin when they end"),
        ({"hours": "25:00-08:00"}, "no clock shows"),
        ({"hours": "22:70-08:00"}, "no clock shows"),
        ({"hours": "Sat, Sun 10:00-12:00"}, "write Sat-Sun 10:00-12:00"),
        ({"hours": ""}, "wanted spans"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        Limits.parse(options)
    assert said in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_a_device_that_is_not_there_cannot_be_lent() -> None:
    assert check(Limits(gpus=(0,)), [CARD]) == [CARD]
    with pytest.raises(OptionError, match=r"--gpus 3 is not there: this machine has 0 \(RTX 4090\)\."):
        check(Limits(gpus=(0, 3)), [CARD])


# hours


def test_over_midnight_and_by_the_day_it_begins_on() -> None:
    hours = Hours.parse("Fri 22:00-08:00")
    friday, saturday = "2026-11-27", "2026-11-28"
    assert [hours.open_at(at(f"{friday}T{time}")) for time in ("07:00", "21:59", "22:00", "23:59")] == [0, 0, 1, 1]
    assert [hours.open_at(at(f"{saturday}T{time}")) for time in ("00:00", "07:59", "08:00", "23:00")] == [1, 1, 0, 0]
    assert hours.next_change(at(f"{friday}T12:00")) == at(f"{friday}T22:00")
    assert hours.next_change(at(f"{friday}T23:00")) == at(f"{saturday}T08:00")
    assert hours.next_change(at(f"{saturday}T12:00")) == at("2026-12-04T22:00")


def test_spans_that_meet_are_one() -> None:
    hours = Hours.parse("Sat-Sun; Mon-Fri 18:00-08:00")
    # from Friday evening to Monday morning, where Sunday's night is not lent beyond midnight
    assert hours.next_change(at("2026-11-27T17:00")) == at("2026-11-27T18:00")
    assert hours.next_change(at("2026-11-27T18:00")) == at("2026-11-30T00:00")
    assert Hours.parse("Mon-Sun").next_change(at("2026-11-27T17:00")) is None
    assert Hours().open_at(at("2026-11-27T17:00"))
    assert Hours().next_change(at("2026-11-27T17:00")) is None
    assert str(Hours.parse("saturday-mon 8-9:30")) == "Sat-Mon 08:00-09:30"


def test_when_clocks_are_put_forward() -> None:
    # 02:00 to 03:00 is left out on this night
    hours = Hours.parse("02:30-06:00")
    before = at("2026-03-29T01:00", BERLIN)
    assert hours.next_change(before) == at("2026-03-29T03:00", BERLIN)
    assert not hours.open_at(at("2026-03-29T01:59", BERLIN))
    assert hours.open_at(at("2026-03-29T03:00", BERLIN))
    ends = Hours.parse("22:00-02:30")
    assert ends.open_at(at("2026-03-29T01:59", BERLIN))
    assert not ends.open_at(at("2026-03-29T03:00", BERLIN))


def test_when_clocks_are_put_back() -> None:
    # 02:00 to 03:00 comes twice on this night
    first, second = at("2026-10-25T02:45", BERLIN), at("2026-10-25T02:45", BERLIN).replace(fold=1)
    ends = Hours.parse("22:00-02:30")
    assert not ends.open_at(first)
    assert not ends.open_at(second)
    assert not ends.open_at(second.replace(minute=15)), "what was taken back stays with its owner"
    night = Hours.parse("22:00-08:00")
    evening = at("2026-10-24T22:00", BERLIN)
    change = night.next_change(evening)
    assert change == at("2026-10-25T08:00", BERLIN)
    assert change.timestamp() - evening.timestamp() == 11 * 3600


def test_local_time_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert Hours.parse("02:30-06:00").next_change(at("2026-03-29T01:00")) == at("2026-03-29T03:00")
    finally:
        monkeypatch.undo()
        time.tzset()


RUNS = st.tuples(st.integers(0, 6), st.integers(1, 7)).map(
    lambda run: tuple(sorted((run[0] + place) % 7 for place in range(run[1])))
)
SPANS = st.builds(Span, RUNS, st.integers(0, DAY_MINUTES - 1), st.integers(1, DAY_MINUTES)).filter(
    lambda span: span.begin != span.end
)


@given(st.lists(SPANS, min_size=1, max_size=3), st.integers(0, 400 * DAY_MINUTES))
def test_between_two_changes_nothing_changes(spans: list[Span], minutes: int) -> None:
    hours = Hours(tuple(dict.fromkeys(spans)))
    assert Hours.parse([str(span) for span in hours.spans]) == hours
    moment = datetime.fromtimestamp(at("2026-01-01T00:00", BERLIN).timestamp() + 60 * minutes, BERLIN)
    change = hours.next_change(moment)
    until = change.timestamp() if change else moment.timestamp() + 7 * 86400
    was = hours.open_at(moment)
    assert change is None or hours.open_at(change) != was
    for part in range(20):
        stamp = moment.timestamp() + (until - moment.timestamp()) * part / 20
        assert hours.open_at(datetime.fromtimestamp(stamp, BERLIN)) == was


# whether the owner is there


@pytest.fixture
def started() -> Iterator[Callable[[str], psutil.Process]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> psutil.Process:
        processes.append(subprocess.Popen([sys.executable, "-c", code]))
        return psutil.Process(processes[-1].pid)

    yield start
    for process in processes:
        process.kill()
        process.wait()


# looks at each line's time, in a process that has the stub of a driver
WATCH = """
import json, sys
from kalavai_nb.lending.idle import IdleWatch
from kalavai_nb.state import Device

now = 0.0
watch = IdleWatch(int(sys.argv[1]), [Device(**json.loads(sys.argv[2]))], clock=lambda: now)
for line in sys.stdin:
    now = float(line)
    print(json.dumps(watch.look()), flush=True)
watch.close()
"""


@pytest.fixture
def look(tmp_path: Path, started: Callable[[str], psutil.Process]) -> Iterator[Callable[..., str]]:
    """``look(now, **settings of the driver)`` of who owns what ``look.root`` has not started."""
    stub = nvml.build_stub(tmp_path / "nvml")
    device = json.dumps(asdict(replace(CARD, selector="GPU-00000000-0")))
    root = started(SLEEP)
    watch = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(root.pid), device],
        env=nvml.environment(stub),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watch.stdin
    assert watch.stdout
    pipes = (watch.stdin, watch.stdout)

    def look(now: float, **settings: object) -> str:
        nvml.change(stub, **settings)
        print(now, file=pipes[0], flush=True)
        return str(json.loads(pipes[1].readline()))

    vars(look)["root"] = root
    yield look
    watch.communicate(timeout=30)


def test_somebody_elses_process_on_a_gpu(look: Any, started: Callable[[str], psutil.Process]) -> None:
    ours, theirs, desktop = look.root.pid, started(SLEEP), started(SLEEP)
    drawn, our_trial = f"{desktop.pid}:300", f"{ours}:900"
    assert look(0, graphics=drawn, utilisation=3) == "", "a desktop that is drawn is nobody"
    assert look(0, compute=our_trial, utilisation=100) == "", "what the pool runs is not its owner"
    found = look(0, compute=f"{our_trial},{theirs.pid}:10")
    assert found == f"{theirs.name()} (pid {theirs.pid}) is on cuda:0"
    assert look(59, compute=our_trial) == found, "it was there just now"
    assert look(60) == ""
    assert f"(pid {desktop.pid})" in look(60, use=f"{desktop.pid}:35"), "somebody plays"
    assert look(120, use=None) == ""
    # a driver that does not tell processes apart
    assert look(120, use="-1", compute=None, utilisation=60) == "cuda:0 is busy (60%)"
    assert look(180, compute=our_trial) == ""
    assert f"(pid {desktop.pid})" in look(180, graphics=f"{desktop.pid}:3000")
    assert look(240, lost=1) == "", "a GPU that says nothing is used by nobody"


def test_load_that_is_not_ours(started: Callable[[str], psutil.Process]) -> None:
    """Others may load this machine meanwhile: two who look at the same moments differ by what is one's own alone."""
    busy, other = started(BUSY), started(SLEEP)
    theirs, ours = (IdleWatch(root, [STAND_IN], 0.0, foreign_load=-1.0) for root in (other.pid, busy.pid))
    spent = lambda: sum(busy.cpu_times()[:2])  # noqa: E731

    def shares() -> tuple[float, float]:
        return tuple(float(watch.look().split("keep ")[1].split("%")[0]) / 100 for watch in (theirs, ours))  # type: ignore[return-value]

    theirs.look(), ours.look()
    begun, before = time.monotonic(), spent()
    while spent() - before < 0.6:
        time.sleep(0.05)
    seen_by_others, seen_by_us = shares()
    share = (spent() - before) / (time.monotonic() - begun) / (os.cpu_count() or 1) / LOAD_LOOKS
    assert seen_by_others - seen_by_us == pytest.approx(share, abs=0.05)
    # and where it is enough, in a moment, it is in use; of all that comes from the first process nothing is foreign
    watch = IdleWatch(other.pid, [STAND_IN], 0.0, foreign_load=0.1)
    deadline = time.monotonic() + 30
    while not watch.look() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "other programs keep" in watch.look()


def test_in_a_container_it_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert IdleWatch(os.getpid(), [STAND_IN]).trouble == ""
    assert IdleWatch(os.getpid(), [CARD]).trouble == ""
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[4026532999]")
    assert "--pid=host" in IdleWatch(os.getpid(), [CARD]).trouble


def test_what_cannot_be_kept_here_is_refused() -> None:
    owner = Owner([STAND_IN], lambda: None)
    owner.check(Limits.parse({"memory": "50%", "when_idle": True}))
    with pytest.raises(OptionError, match=r"^--max-power cannot be kept on box cpu:0: how much"):
        owner.check(Limits.parse({"max_power": "250"}))
