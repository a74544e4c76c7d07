"""Two notebooks on one pool: in order, fairly, without deadlock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

import kalavai_nb as kn
from kalavai_nb.engine import Engine
from kalavai_nb.errors import NotEnoughDevices
from kalavai_nb.state import Need

ROUNDS = 50


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(idle_seconds=0, quiet=True) as pool:
        yield pool


@pytest.fixture
def second(pool: kn.Pool) -> Iterator[kn.Pool]:
    with kn.Pool(pool.invite()) as second:
        yield second


def engine_of(pool: kn.Pool) -> Engine:
    return pool._engine


def test_two_owners_want_every_device_fifty_times(pool: kn.Pool, second: kn.Pool) -> None:
    served: list[str] = []
    holding = threading.Semaphore(1)

    def want(owner: kn.Pool) -> None:
        engine = engine_of(owner)
        for _ in range(ROUNDS):
            leases, _ = engine.acquire(Need(engine.owner, 4), wait_seconds=60)
            assert holding.acquire(blocking=False), "two owners held all devices at once"
            served.append(owner.owner)
            assert sum(len(lease.devices) for lease in leases) == 4
            holding.release()
            engine.release(lease.id for lease in leases)

    threads = [threading.Thread(target=want, args=(owner,)) for owner in (pool, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(served) == 2 * ROUNDS
    # while both ask, neither is served many times in a row: one that has just been served asks behind the other
    runs = [len(list(group)) for _, group in groupby(served[5 : ROUNDS + 30])]
    assert max(runs) <= 20


def test_two_notebooks_run_cells_on_all_devices_in_turn(pool: kn.Pool, second: kn.Pool) -> None:
    def run_cells(owner: kn.Pool) -> None:
        for _ in range(3):
            owner.run("where = rank", gpus=4, wait="60s")

    threads = [threading.Thread(target=run_cells, args=(owner,)) for owner in (pool, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
        assert not thread.is_alive()
    assert [run.status for owner in (pool, second) for run in owner.runs[-3:]] == ["ok"] * 6


def test_what_an_idle_session_lost_is_said(pool: kn.Pool, second: kn.Pool, capsys: pytest.CaptureFixture[str]) -> None:
    pool.run("precious = rank", gpus=4)
    second.run("pass", gpus=4)
    capsys.readouterr()
    deadline = time.monotonic() + 20
    said = ""
    while "Lost with it: precious" not in said and time.monotonic() < deadline:
        pool.run("pass", gpus=4)
        said += capsys.readouterr().out
    assert "was released while idle" in said


def test_waiting_ends_with_a_reason_and_leaves_no_request(pool: kn.Pool, second: kn.Pool) -> None:
    engine = engine_of(second)
    leases, _ = engine.acquire(Need(engine.owner, 3))
    with pytest.raises(NotEnoughDevices, match=r"1st in the queue; 1 of the 4 devices it needs are free; .* holds"):
        pool.run("pass", gpus=4, wait=0.5)
    assert not pool.snapshot().queue
    engine.release(lease.id for lease in leases)
    pool.run("pass", gpus=4)


def test_no_patience_is_granted_what_is_free_and_refused_at_once_else(pool: kn.Pool, second: kn.Pool) -> None:
    pool.run("pass", gpus=4, wait="60s")
    pool.run("pass", gpus=4, wait=0)
    started = time.monotonic()
    with pytest.raises(NotEnoughDevices, match="asked for 9 devices"):
        pool.run("pass", gpus=9)
    assert time.monotonic() - started < 4, "a refusal was waited for"


def test_a_sweep_does_not_starve_a_gang_of_another_owner(pool: kn.Pool, second: kn.Pool) -> None:
    sweep = pool.map(lambda seconds: time.sleep(seconds), [0.2] * 60, show=False)
    second.run("pass", gpus=4, wait="60s")
    assert any(not trial.state.is_finished() for trial in sweep.trials), "the gang came after the whole sweep"
    sweep.stop()


def test_an_idle_session_does_not_block_its_own_sweep(pool: kn.Pool) -> None:
    pool.run("x = 1", gpus=4)
    assert pool.map(lambda x: x + 1, range(6), show=False).values == [1, 2, 3, 4, 5, 6]
    pool.run("assert x == 1", gpus=4)


def test_an_expired_invite_is_refused(pool: kn.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # somebody who is no member yet
    monkeypatch.setenv("KALAVAI_HOME", str(tmp_path))
    with pytest.raises(kn.errors.OptionError, match="for a time to come"):
        pool.invite(expires="0s")
    text = pool.invite(expires=0.01)
    with pytest.raises(kn.errors.NotWelcome, match="the invite expired"):
        kn.Pool(text)
