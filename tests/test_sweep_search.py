"""pool.sweep on a real pool: proposals, pruning, several metrics, resume. The searches alone are in test_search.py."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import optuna
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import OptionError, SweepError
from kalavai_nb.state import TrialState


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kn.Pool]:
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("notebook"))
    # the functions below go along as functions of a notebook do
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with kn.Pool(devices=2, quiet=True) as pool:
        yield pool
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    os.chdir(before)


def parabola(config: dict[str, float]) -> dict[str, float]:
    return {"loss": (config["x"] - 2) ** 2 + config.get("y", 0)}


def curve(config: dict[str, float], trial: kn.LiveTrial) -> float:
    """Falls from 1 towards ``floor``, a report for each of 27 epochs."""
    loss = 1.0
    for epoch in range(1, 28):
        loss = config["floor"] + (1 - config["floor"]) / epoch
        trial.report(epoch, loss=loss)
    return loss


def test_a_grid_needs_no_optuna_and_tries_all(pool: kn.Pool) -> None:
    sweep = pool.sweep(parabola, {"x": [0, 1, 2], "y": range(2)}, metric="loss", search="grid", show=False).wait()
    assert [trial.config for trial in sweep.trials] == [{"x": x, "y": y} for x in range(3) for y in range(2)]
    assert sweep.best.config == {"x": 2, "y": 0}
    assert len(pool.sweep(parabola, {"x": [0, 1, 2]}, metric="loss", search="grid", trials=2, show=False).wait()) == 2


def test_random_reproduces_with_its_seed(pool: kn.Pool) -> None:
    def configs(seed: int) -> list[Any]:
        space = {"x": kn.uniform(0, 4), "y": kn.loguniform(0.01, 1)}
        sweep = pool.sweep(parabola, space, metric="loss", search="random", trials=6, seed=seed, show=False).wait()
        return [trial.config for trial in sweep.trials]

    assert configs(1) == configs(1)
    assert configs(1) != configs(2)


def test_tpe_finds_what_is_good_and_its_study_is_optunas(pool: kn.Pool) -> None:
    start = [{"x": 3.5}]
    sweep = pool.sweep(parabola, {"x": kn.uniform(-10, 10)}, metric="loss", trials=30, start=start, show=False).wait()
    assert sweep[0].config == {"x": 3.5}
    assert sweep.best.value["loss"] < 1.0
    study = sweep.study
    assert isinstance(study, optuna.Study)
    assert study.best_value == sweep.best.value["loss"]
    assert len(study.trials_dataframe()) == 30
    assert all(trial.state.is_finished() for trial in study.trials)


def test_the_study_of_a_named_sweep_is_a_file_for_optunas_dashboard(pool: kn.Pool) -> None:
    pool.sweep(parabola, {"x": kn.uniform(0, 4)}, metric="loss", trials=5, name="seen, by all", show=False).wait()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(next(Path(".kalavai/studies").glob("seen_by_all-*.log"))))
    )
    study = optuna.load_study(study_name="seen, by all", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5


def test_a_search_without_optuna_has_a_study_too(pool: kn.Pool) -> None:
    sweep = pool.sweep(parabola, {"x": [0, 1, 2]}, metric="loss", search="grid", show=False).wait()
    assert sweep.study.best_params == {"x": 2}
    with pytest.raises(SweepError, match=r"pool\.map searches nothing"):
        pool.map(parabola, [{"x": 1}], show=False).study  # noqa: B018


def test_asha_prunes_bad_curves_and_lets_good_ones_end(pool: kn.Pool) -> None:
    space = {"floor": kn.uniform(0, 1)}
    sweep = pool.sweep(curve, space, metric="loss", search="random", stop="asha", trials=40, seed=1, show=False).wait()
    pruned = [trial for trial in sweep.trials if trial.state is TrialState.PRUNED]
    assert len(pruned) >= 20
    assert all(trial.reports[-1].step < 27 for trial in pruned)
    assert all(trial.error is None for trial in sweep.trials)
    floors = sorted(trial.config["floor"] for trial in sweep.trials)
    assert sweep.best.config["floor"] in floors[:4]
    epochs = sum(len(trial.reports) for trial in sweep.trials)
    assert epochs < 40 * 27 / 2
    states = {trial.number: trial.state.name for trial in sweep.study.trials}
    assert sorted(states.values()) == sorted(str(trial.state) for trial in sweep.trials)


def test_several_metrics_have_a_front(pool: kn.Pool) -> None:
    def both(config: dict[str, float]) -> dict[str, float]:
        return {"loss": config["x"], "size": 1 - config["x"] + config["waste"]}

    space = {"x": [0.0, 0.5, 1.0], "waste": [0.0, 1.0]}
    sweep = pool.sweep(both, space, metric=["loss", "size"], search="grid", show=False).wait()
    assert {trial.config["waste"] for trial in sweep.best_trials} == {0.0}
    assert len(sweep.best_trials) == 3
    with pytest.raises(SweepError, match=r"no one trial is best: see sweep\.best_trials"):
        sweep.best  # noqa: B018
    assert len(sweep.study.best_trials) == 3


def test_running_it_again_goes_on_where_it_was(pool: kn.Pool) -> None:
    def slow(config: dict[str, float]) -> float:
        time.sleep(0.1)
        return config["x"] ** 2

    arguments: dict[str, Any] = {"metric": "loss", "name": "search again", "show": False}
    for search in ("tpe", "random"):
        arguments |= {"name": f"again by {search}", "search": search}
        first = pool.sweep(slow, {"x": kn.uniform(-1, 1)}, trials=20, **arguments)
        first[5]
        first.stop()
        done = {t.index: t.config for t in first.trials if t.state is TrialState.COMPLETE}
        second = pool.sweep(slow, {"x": kn.uniform(-1, 1)}, trials=24, **arguments).wait()
        assert len(second) == 24
        assert {index: second[index].config for index in done} == done
        assert all(trial.state is TrialState.COMPLETE for trial in second.trials)
        assert len({trial.config["x"] for trial in second.trials}) == 24
        assert len(second.study.trials) == 24


def test_a_grid_that_has_grown_runs_what_is_new(pool: kn.Pool) -> None:
    arguments: dict[str, Any] = {"metric": "loss", "search": "grid", "name": "grows", "show": False}
    pool.sweep(parabola, {"x": [1, 2]}, **arguments).wait()
    second = pool.sweep(parabola, {"x": [0, 1, 2]}, **arguments).wait()
    assert [trial.config["x"] for trial in second.trials] == [1, 2, 0]


def test_a_metric_that_is_never_returned_costs_one_trial(pool: kn.Pool) -> None:
    sweep = pool.sweep(parabola, {"x": kn.uniform(0, 1)}, metric="accuracy", trials=50, show=False)
    said = r"trial \d gave no number under metric='accuracy': it returned a dict with loss"
    with pytest.raises(SweepError, match=said):
        sweep.wait()
    assert [trial.value["loss"] for trial in sweep.trials if trial.value], "what was computed is kept"
    assert len(sweep) < 10


def test_nan_is_a_value_that_is_never_best(pool: kn.Pool) -> None:
    def sometimes(config: dict[str, float]) -> float:
        return float("nan") if config["x"] < 2 else config["x"]

    sweep = pool.sweep(sometimes, {"x": [1, 2, 3]}, metric="loss", search="grid", stop="asha", show=False).wait()
    assert sweep.best.config == {"x": 2}
    assert [trial.state.name for trial in sweep.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_failing_trial_is_told_and_the_search_goes_on(pool: kn.Pool) -> None:
    def picky(config: dict[str, float]) -> float:
        if config["x"] > 0.5:
            raise ValueError("too large")
        return config["x"]

    sweep = pool.sweep(picky, {"x": kn.uniform(0, 1)}, metric="loss", trials=12, show=False).wait()
    assert len(sweep) == 12
    assert 0 < len(sweep.failed) < 12


def test_a_sampler_that_raises_ends_the_sweep_with_its_error(pool: kn.Pool) -> None:
    class Broken(optuna.samplers.RandomSampler):
        def sample_independent(self, *arguments: Any) -> Any:
            if self._rng.rng.random() < 2:
                raise RuntimeError("the sampler is broken")

    sweep = pool.sweep(parabola, {"x": kn.uniform(0, 1)}, metric="loss", search=Broken(), trials=3, show=False)
    with pytest.raises(SweepError, match="the sampler is broken"):
        sweep.wait()


@pytest.mark.parametrize(
    ("space", "options", "says"),
    [
        ({"x": {1, 2}}, {}, "x= cannot be a set"),
        ({"x": []}, {}, "nothing to choose from"),
        ({}, {}, "space"),
        ({"x": kn.uniform(0, 1)}, {"search": "grid"}, "grid"),
        ({"x": [1]}, {"search": "tp"}, "Did you mean 'tpe'?"),
        ({"x": [1]}, {"stop": "ash"}, "Did you mean 'asha'?"),
        ({"x": [1]}, {"colour": 3}, "pool.sweep has no option 'colour'"),
        ({"x": [1]}, {"gpu": 1}, "pool.sweep has no option 'gpu'. Did you mean 'gpus'?"),
        ({"x": [1]}, {"trails": 1}, "Did you mean 'trials'? help(pool.map) and help(pool.sweep) list them."),
        ({"x": [1]}, {"mode": "least"}, "wanted 'min' or 'max'"),
        ({"x": [1]}, {"start": [{"z": 1}]}, "z"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(
    pool: kn.Pool, space: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionError) as caught:
        pool.sweep(parabola, space, metric="loss", show=False, **options)
    assert says in str(caught.value)
