"""What a type checker has to know of the public API: no line of this runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type

import kalavai_nb as kn


def _loss(config: dict[str, float]) -> float:
    return config["rate"]


def _name(config: int, trial: kn.LiveTrial) -> str:
    return f"{trial.device} {config}"


def _sweeps(pool: kn.Pool) -> None:
    sweep = pool.map(_loss, [{"rate": 0.1}], gpus=0.5, name="rates")
    assert_type(sweep, kn.Sweep[float])
    assert_type(sweep.values, list[float])
    assert_type([value for value in sweep], list[float])
    assert_type(sweep.wait(), kn.Sweep[float])
    assert_type(sweep.best, kn.Trial[float])
    assert_type(sweep[0].value, float | None)
    assert_type(sweep[0].state, kn.TrialState)
    assert_type(sweep[:2], list[kn.Trial[float]])
    assert_type(sweep.failed, list[kn.Trial[float]])
    assert_type(pool.map(_name, range(3)).values, list[str])
    # a trial that is pruned has no value
    assert_type(pool.sweep(_loss, {"rate": kn.loguniform(1e-5, 1)}, metric="loss").values, list[float | None])
    assert_type(kn.sweeps["rates"], kn.Sweep[Any])


def _models(pool: kn.Pool) -> None:
    lm = pool.load("org/model", quant="int8")
    assert_type(lm, kn.ShardedLM)
    assert_type(lm.generate("a text"), str)
    assert_type(lm.generate([1, 2], temperature=0.5, stop=["."]), str)
    assert_type(lm.generate([{"role": "user", "content": "a message"}]), str)
    assert_type(lm.generate(["a text", "another"], max_new_tokens=3), list[str])
    assert_type(lm.generate([[1, 2], [3]]), list[str])
    assert_type(lm.generate("a text", details=True), kn.Generation)
    assert_type(lm.generate(["a text"], details=True, seed=1), list[kn.Generation])
    assert_type(lm.chat("a message"), str)
    assert_type(lm.stream("a text"), Iterator[str])
    assert_type(kn.plan("70B"), kn.Plan)


def _pools(pool: kn.Pool) -> None:
    assert_type(pool.devices, list[kn.Device])
    assert_type(pool.snapshot(), kn.Snapshot)
    assert_type(pool.runs, list[kn.CellRun])
    assert_type(kn.current_pool(), kn.Pool)
    assert_type(kn.__version__, str)
    # what is misspelt is no Any: an ignore that ignores nothing is an error
    _ = pool.dvices  # type: ignore[attr-defined]
    _ = kn.Pol  # type: ignore[attr-defined]
