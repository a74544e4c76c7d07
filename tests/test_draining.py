"""A device that its owner takes back: nobody gets it any more, what may move moves, and nothing is lost by it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import kalavai_nb as kn
from kalavai_nb.deploy import EmbeddedPool
from kalavai_nb.state import Device

GRACE_SECONDS = 60.0
LIMIT_SECONDS = 60.0


class Lender:
    """Takes devices of an embedded pool back and lends them again, as an agent does: by orders to their machine."""

    def __init__(self, embedded: EmbeddedPool, devices: list[Device]) -> None:
        assert embedded._machine.stdin
        self._orders = embedded._machine.stdin
        self._devices = devices
        self._identity = embedded.authority.issue("worker:local", listens=True)

    def order(self, *lent: int, leaving: int | None = None, grace: float = GRACE_SECONDS) -> None:
        """Lend these, and take one of them back."""
        why = {"why": "its owner takes it back", "grace_seconds": grace}
        order = {
            "head": None,
            "address": "",
            "identity": asdict(self._identity),
            "devices": [asdict(self._devices[index]) for index in lent],
            "contacts": {},
            "leaving": {} if leaving is None else {self._devices[leaving].id: why},
            "limits": {},
            "proxy": 0,
            "agent": "",
            "listens": False,
            "cwd": str(Path.cwd()),
            "measure": False,
        }
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kn.Pool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        with kn.Pool(devices=2, quiet=True) as pool:
            yield pool


@pytest.fixture(scope="module")
def lender(pool: kn.Pool) -> Lender:
    [embedded] = [each for each in vars(pool._opened).values() if isinstance(each, EmbeddedPool)]
    return Lender(embedded, [Device(**{**asdict(device), "worker": ""}) for device in pool.devices])


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_gone(pool: kn.Pool, index: int) -> bool:
    return [device.index for device in pool.devices] == [1 - index]


def lent_again(lender: Lender, pool: kn.Pool) -> None:
    lender.order(0, 1)
    until(lambda: len(pool.devices) == 2)


def test_an_idle_device_is_gone_at_once_and_is_not_missed(pool: kn.Pool, lender: Lender) -> None:
    lender.order(0, 1, leaving=1)
    until(lambda: has_gone(pool, 1))
    snapshot = pool.snapshot()
    kinds = [event.kind for event in snapshot.events]
    assert kinds[-2:] == ["leaving", "left"]
    assert not [alert for alert in snapshot.alerts if alert.kind == "lost"]
    pool.run("x = 1", gpus=1)
    lent_again(lender, pool)


def test_an_idle_session_is_taken_back_at_once(pool: kn.Pool, lender: Lender) -> None:
    pool.run("x = 1", gpus=2)
    lender.order(0, 1, leaving=0)
    until(lambda: has_gone(pool, 0))
    until(lambda: len(pool.snapshot().leases) == 1)
    lent_again(lender, pool)
    pool.restart()


def test_a_trial_ends_first_while_others_go_elsewhere(pool: kn.Pool, lender: Lender, tmp_path: Path) -> None:
    gates = [str(tmp_path / f"go-{number}") for number in range(2)]

    def work(gate: str) -> str:
        import pathlib
        import time

        while gate and not pathlib.Path(gate).exists():
            time.sleep(0.02)
        return gate

    sweep = pool.map(work, gates + [""] * 20, show=False)
    until(lambda: sum(trial.state == "RUNNING" for trial in sweep.trials) == 2)
    lender.order(0, 1, leaving=0)
    until(lambda: pool.snapshot().leaving)
    [sentence] = pool.snapshot().leaving.values()
    assert sentence.startswith("its owner takes it back: ")
    stays = next(gate for gate, trial in zip(gates, sweep.trials[:2], strict=True) if trial.device.endswith("0"))
    goes = next(gate for gate in gates if gate != stays)
    Path(goes).touch()
    until(lambda: sum(trial.state == "COMPLETE" for trial in sweep.trials) == 21)
    assert len(pool.devices) == 2, "a trial still runs there"
    Path(stays).touch()
    assert sweep.values == gates + [""] * 20
    until(lambda: has_gone(pool, 0))
    assert {trial.attempts for trial in sweep.trials} == {1}
    lent_again(lender, pool)


def test_a_trial_that_is_cut_off_when_the_grace_is_over_has_not_failed(
    pool: kn.Pool, lender: Lender, tmp_path: Path
) -> None:
    gate = str(tmp_path / "go")

    def work(gate: str) -> str:
        import pathlib
        import time

        while not pathlib.Path(gate).exists():
            time.sleep(0.02)
        return gate

    sweep = pool.map(work, [gate], show=False)
    # a trial that loses its worker twice has failed
    for attempt in range(2):
        until(lambda: sweep.trials[0].state == "RUNNING" and sweep.trials[0].attempts == attempt + 1)  # noqa: B023
        index = int(sweep.trials[0].device[-1])
        lender.order(0, 1, leaving=index, grace=0.5)
        until(lambda: has_gone(pool, index))  # noqa: B023
        lent_again(lender, pool)
    threading.Timer(0.0, Path(gate).touch).start()
    assert sweep.values == [gate]


def test_who_changes_his_mind_keeps_lending(pool: kn.Pool, lender: Lender) -> None:
    cell = pool.run("import time\nfor _ in range(6000): time.sleep(0.01)", gpus=2, async_=True)
    until(lambda: len([lease for lease in pool.snapshot().leases if lease.running]) == 2)
    lender.order(0, 1, leaving=1)
    until(lambda: pool.snapshot().leaving)
    lender.order(0, 1)
    until(lambda: not pool.snapshot().leaving)
    assert pool.snapshot().events[-1].kind == "stays"
    cell.cancel()
    assert len(pool.devices) == 2
