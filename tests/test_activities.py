"""What of a model and of a sweep is seen by all who look at the pool, and what a button does to a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kalavai_nb as kn
from kalavai_nb.errors import ModelError, OptionError
from kalavai_nb.lm.rate import WINDOW_SECONDS, Rate
from kalavai_nb.orders import carry_out
from kalavai_nb.session import first_line
from kalavai_nb.snapshot import Snapshot
from tiny_lm import tiny_lm


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(devices=2, quiet=True) as pool:
        yield pool


def wait(pool: kn.Pool, ready: Callable[[Snapshot], Any]) -> Snapshot:
    deadline = time.monotonic() + 60
    while not ready(snapshot := pool.snapshot()):
        assert time.monotonic() < deadline, snapshot
        time.sleep(0.05)
    return snapshot


def test_a_model_is_seen_at_work_and_is_closed_by_a_button(pool: kn.Pool, tmp_path: Path) -> None:
    lm = pool.load(tiny_lm(tmp_path), gpus=2, max_len=4096, show=False)
    request = lm.submit("Once upon a time", max_new_tokens=4000)
    [model] = wait(pool, lambda snapshot: snapshot.models and snapshot.models[0].tokens_per_second).models
    assert (model.owner, model.state, model.requests) == (pool.owner, "running", 1)
    (start, middle), (again, end) = (layers for _, layers in model.stages)
    assert (start, middle, end) == (0, again, 6)
    assert {device for device, _ in model.stages} == {device.id for device in pool.devices}
    assert pool.models == [lm]
    assert carry_out(pool, "close_model", model.id) == f"{lm.name} is closed; its devices are free."
    with pytest.raises(ModelError, match="was closed"):
        request.result()
    assert pool.models == []
    wait(pool, lambda snapshot: not snapshot.models)
    with pytest.raises(OptionError, match="no such model"):
        carry_out(pool, "close_model", model.id)


def test_a_sweep_that_failed_and_one_that_is_over_say_so(pool: kn.Pool) -> None:
    def half(x: int) -> float:
        if x % 2:
            raise ValueError("odd")
        return x / 2

    sweep = pool.map(half, range(6), metric="half", mode="max", name="halves", show=False)
    sweep.wait()
    [seen] = wait(pool, lambda snapshot: snapshot.sweeps and snapshot.sweeps[0].state == "ended").sweeps
    assert (seen.counts, seen.total, seen.eta_seconds) == ({"COMPLETE": 3, "FAILED": 3}, 6, None)
    assert seen.best == "half=2 with 4"
    assert seen.trouble == "3 × ValueError: odd"
    kn.sweeps.forget("halves")
    wait(pool, lambda snapshot: not snapshot.sweeps)


def test_the_rate_is_of_the_last_seconds_and_zero_at_rest() -> None:
    rate = Rate()
    assert rate.per_second(0.0) == 0.0
    for tick in range(100):
        rate.add(2, now=tick / 10)
    assert rate.per_second(9.9) == pytest.approx(20, rel=0.05)
    assert rate.per_second(9.9 + WINDOW_SECONDS + 1) == 0.0
    rate.add(1, now=30.0)
    assert rate.per_second(30.0) == 0.0, "one token is no speed yet"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("# %%pool gpus=2\n\nx = 1\ny = 2", "x = 1"),
        ("%%time\nx = 1", "%%time"),
        ("", ""),
        ("   \n\t", ""),
        ("x" * 500, "x" * 80),
    ],
)
def test_a_cell_is_called_by_its_first_line(source: str, line: str) -> None:
    assert first_line(source) == line
