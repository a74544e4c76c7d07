"""Search spaces, and who proposes configs: grids, chance, and Optuna itself, which is never imitated here."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from kalavai_nb.errors import MissingExtra, OptionError
from kalavai_nb.search.optuna_search import OptunaSearch
from kalavai_nb.search.search import Search, make_search
from kalavai_nb.search.space import Space, loguniform, uniform
from kalavai_nb.state import Report, Trial, TrialState

SPACE = {"lr": loguniform(1e-5, 1.0), "n": range(1, 9), "act": ["relu", "tanh"], "epochs": 10}
LOSS: dict[str, Any] = {"metrics": ("loss",), "modes": ("min",)}


def loss(config: dict[str, Any]) -> float:
    return float((config["n"] - 4) ** 2 + abs(math.log10(config["lr"]) + 2))


def ended(index: int, config: Any, value: Any = None, *numbers: float, state: str = "COMPLETE") -> Trial:
    """A trial that reported these numbers as its loss, at steps from 0."""
    reports = tuple(Report(step, {"loss": number}) for step, number in enumerate(numbers))
    return Trial(index, TrialState(state), config, value, reports=reports, seconds=1.5)


def drive(search: Search, first: int, last: int, value: Callable[[Any], Any] = loss) -> list[Any]:
    """Trials one after the other; their configs."""
    configs = []
    for index in range(first, last):
        config = search.ask(index)
        assert config is not None
        search.tell(ended(index, config, value(config)))
        configs.append(config)
    return configs


def study_of(search: Search) -> optuna.Study:
    assert isinstance(search, OptunaSearch)
    return search.study


def said(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


# what a space may be made of


def test_a_grid_varies_its_last_name_fastest() -> None:
    space = Space({"a": [1, 2], "b": range(0, 6, 2), "c": "fixed"})
    assert space.grid_size == 6
    assert list(space.grid()) == [{"a": a, "b": b, "c": "fixed"} for a in (1, 2) for b in (0, 2, 4)]
    assert [list(config) for config in space.grid()] == [["a", "b", "c"]] * 6


def test_a_huge_grid_is_not_written_out() -> None:
    space = Space({"a": range(10**12), "b": range(10**6)})
    assert space.grid_size == 10**18
    assert next(space.grid()) == {"a": 0, "b": 0}
    assert space.grid_config(10**6) == {"a": 1, "b": 0}


def test_arrays_are_values_of_pythons_own() -> None:
    space = Space({"lr": np.array([0.1, 0.01]), "n": np.arange(2), "row": np.eye(2), "only": np.array(3)})
    first = next(space.grid())
    assert (type(first["lr"]), type(first["n"]), first["only"]) == (float, int, 3)
    assert first["row"].tolist() == [1, 0]
    assert space.grid_size == 8


def test_a_falling_range_has_the_same_integers() -> None:
    assert [config["n"] for config in Space({"n": range(9, 0, -4)}).grid()] == [1, 5, 9]


def test_constants_are_one_value() -> None:
    space = Space({"a": 3, "b": 0.5, "c": "text", "d": None, "e": True, "f": range(2, 3), "g": np.float32(0.5)})
    assert list(space.grid()) == [{"a": 3, "b": 0.5, "c": "text", "d": None, "e": True, "f": 2, "g": 0.5}]
    assert not space.varying


def test_optunas_distributions_are_what_they_are() -> None:
    space = Space(
        {
            "step": FloatDistribution(0.0, 1.0, step=0.25),
            "n": IntDistribution(2, 6, step=2),
            "log": IntDistribution(1, 3, log=True),
            "c": CategoricalDistribution(["x", "y"]),
            "one": FloatDistribution(2.0, 2.0),
        }
    )
    assert [domain.size for domain in space.domains.values()] == [5, 3, 3, 2, 1]
    assert list(space.grid())[-1] == {"step": 1.0, "n": 6, "log": 3, "c": "y", "one": 2.0}
    assert repr(Space({"lr": FloatDistribution(1e-5, 1.0, log=True)}).domains["lr"]) == "loguniform(1e-05, 1)"


def test_integers_on_a_logarithm_come_by_their_size() -> None:
    space, rng = Space({"n": IntDistribution(1, 1000, log=True)}), random.Random(0)
    drawn = [space.sample(rng)["n"] for _ in range(3000)]
    assert min(drawn) == 1
    assert max(drawn) > 900
    assert 0.3 < sum(n <= 14 for n in drawn) / 3000 < 0.6


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e3), st.booleans(), st.integers())
def test_samples_are_in_the_space(low: float, factor: float, log: bool, seed: int) -> None:
    number = loguniform(low, low * factor) if log else uniform(low, low * factor)
    space = Space({"x": number, "n": IntDistribution(1, 40, log=log), "s": FloatDistribution(-1, 1, step=0.1)})
    config = space.sample(random.Random(seed))
    assert space.check(config) == config
    assert isinstance(config["n"], int)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_place_in_the_grid_has_one_config(sizes: list[int], data: st.DataObject) -> None:
    space = Space({f"x{i}": [[value] for value in range(size)] for i, size in enumerate(sizes)})
    position = data.draw(st.integers(0, math.prod(sizes) - 1))
    assert space.grid_position(space.grid_config(position)) == position
    assert next(itertools.islice(space.grid(), position, None)) == space.grid_config(position)


REFUSED: list[tuple[Any, str]] = [
    ([{"lr": 1}], "wanted as a dict of names, such as .*; got a list .* A list of whole configs is for pool.map"),
    ({}, "the search space is empty: give it a name"),
    ({3: [1]}, "names of a search space are texts; got 3. Write them as 'lr'"),
    ({"a": []}, r"a=\[\] has nothing to choose from: give it one value or more"),
    ({"a": range(0)}, "nothing to choose from"),
    ({"a": np.array([])}, "nothing to choose from"),
    ({"a": {1, 2}}, r"a= cannot be a set \({1, 2}\): wanted a list, a range, kn.uniform.* A set has no order"),
    ({"a": loss}, r"a= cannot be a function .* put it in a list of one: a=\[…\]"),
    ({"a": {"b": 1}}, "a= cannot be a dict .* list of one"),
    ({"a": iter([1])}, r"a= cannot be a list_iterator .* Write out what it gives: a=list\(…\)"),
    ({"a": object()}, "a= cannot be an object"),
]


@pytest.mark.parametrize(("space", "sentence"), REFUSED)
def test_a_space_that_cannot_be_meant_is_refused(space: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Space(space)


def test_a_distribution_of_scipys_is_refused_with_a_way_out() -> None:
    stats = pytest.importorskip("scipy.stats")
    with pytest.raises(OptionError, match=r"lr= cannot be a .*rvs\(20\).*kn.uniform"):
        Space({"lr": stats.loguniform(1e-4, 1)})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: uniform(2, 1), r"uniform\(2, 1\) has nothing in it: wanted low < high. Swap the two"),
        (lambda: uniform(1, 1), "wanted low < high"),
        (lambda: loguniform(0, 1), r"loguniform\(0, 1\) .* wanted a low above 0, .* such as 1e-6, or kn.uniform"),
        (lambda: uniform(0, math.nan), r"uniform\(0, nan\) .* two finite numbers, low and high; got nan"),
        (lambda: loguniform(1, math.inf), "two finite numbers"),
        (lambda: uniform("0", 1), r"uniform\('0', 1\) .* got '0'"),  # type: ignore[arg-type]
        (lambda: uniform(False, 1), "got False"),
    ],
)
def test_bounds_that_cannot_be_meant_are_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make()


def test_a_grid_of_what_has_no_end_is_refused() -> None:
    with pytest.raises(OptionError) as error:
        make_search({"lr": uniform(0, 1), "n": [1]}, search="grid")
    assert said(error) == (
        "search='grid' needs lists or ranges; lr is uniform(0, 1). Give it a list, or use search='random'."
    )
    with pytest.raises(OptionError, match=r"lr is uniform\(0, 1\) and wd is loguniform\(1e-06, 0.1\). Give them lists"):
        _ = Space({"lr": uniform(0, 1), "wd": loguniform(1e-6, 0.1)}).grid_size


def test_a_checked_config_is_in_order_and_has_its_constants() -> None:
    config = Space(SPACE).check({"act": "tanh", "n": 3.0, "lr": 1})
    assert list(config.items()) == [("lr", 1.0), ("n", 3), ("act", "tanh"), ("epochs", 10)]
    assert isinstance(config["n"], int)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"lrr": 1},
            r"start\[0\] has 'lrr', which the space has not. Did you mean 'lr'\? Its names are lr, n, act, ep",
        ),
        ({"lr": None}, r"start\[0\] has lr=None, which is not in loguniform\(1e-05, 1\). Choose a value"),
        ({"lr": 2.0}, r"lr=2.0, which is not in loguniform"),
        ({"n": 9}, "n=9, which is not in the integers 1 to 8"),
        ({"n": 2.5}, "n=2.5, which is not in the integers"),
        ({"n": True}, "n=True, which is not in"),
        ({"act": "gelu"}, r"act='gelu', which is not in \['relu', 'tanh'\]"),
        ({"epochs": 11}, r"epochs=11, which is not in \[10\]"),
    ],
)
def test_a_start_outside_the_space_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make_search(SPACE, search="random", start=[{"lr": 0.1, "n": 2, "act": "relu"} | change])


def test_a_start_that_is_no_config_is_refused() -> None:
    with pytest.raises(OptionError, match=r"start\[1\] has no n, act: give a value for each of lr, n, act."):
        make_search(SPACE, search="random", start=[{"lr": 0.1, "n": 2, "act": "relu"}, {"lr": 0.1}])
    with pytest.raises(OptionError, match=r"start\[0\] is wanted as a dict of lr, n, act, epochs; got an int \(3\)"):
        make_search(SPACE, search="random", start=[3])  # type: ignore[list-item]
    with pytest.raises(OptionError, match=r"wanted a list of configs. Write start=\[{…}\]"):
        make_search(SPACE, search="random", start={"lr": 0.1})  # type: ignore[arg-type]


def test_choices_are_told_apart_as_values() -> None:
    layers = [[64], (64,), np.ones(2), np.zeros(2), True, 1, math.nan, {"a": np.ones(1)}, loss]
    domain = Space({"x": layers}).domains["x"]
    copies = [[64], (64,), np.ones(2), np.zeros(2), True, 1.0, float("nan"), {"a": np.ones(1)}, loss]
    assert [domain.position(value) for value in copies] == list(range(9))
    for stranger in (np.ones(3), [65], False, "64", object()):
        with pytest.raises(LookupError):
            domain.position(stranger)


# grid and chance


def test_a_grid_ends_and_trials_bound_it() -> None:
    search = make_search({"a": [1, 2], "b": [3, 4]}, search="grid")
    assert [search.ask(index) for index in range(5)] == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
        None,
    ]
    assert make_search({"a": [1, 2]}, search="grid", trials=1).ask(1) is None


def test_a_grid_tries_its_start_first_and_once() -> None:
    start = [{"a": 3}, {"a": 1}, {"a": 3}]
    search = make_search({"a": range(5)}, search="grid", start=start)
    assert [(search.ask(index) or {}).get("a") for index in range(7)] == [3, 1, 3, 0, 2, 4, None]


def test_a_random_search_goes_by_seed_and_index() -> None:
    configs = [make_search(SPACE, search="random", seed=7).ask(index) for index in range(20)]
    backwards = make_search(SPACE, search="random", seed=7)
    assert [backwards.ask(index) for index in reversed(range(20))] == configs[::-1]
    assert make_search(SPACE, search="random", seed=8).ask(0) != configs[0]
    assert make_search(SPACE, search="random", seed=None).ask(0) != make_search(SPACE, search="random", seed=None).ask(
        0
    )
    assert len({config["lr"] for config in configs if config}) == 20


def test_a_random_search_goes_on_where_an_earlier_session_ended() -> None:
    configs = drive(make_search(SPACE, search="random", trials=6), 0, 6)
    again = make_search(SPACE, search="random", trials=6)
    for index in range(3):
        again.recall(ended(index, configs[index], 1.0))
    assert drive(again, 3, 6) == configs[3:]
    assert again.ask(6) is None


def test_a_search_by_index_prunes_nothing() -> None:
    assert make_search(SPACE, search="random").report(0, 5, {"loss": math.nan}) is False


@pytest.mark.parametrize("search", ["random", "grid"])
@pytest.mark.parametrize("stop", ["asha", "hyperband"])
def test_a_pruner_does_not_change_what_is_tried(search: str, stop: str) -> None:
    space = {"n": range(1, 9), "c": [[1], {"x": 2}, loss], "k": 3}
    options: dict[str, Any] = {"search": search, "seed": 5, "trials": 12, "start": [{"n": 8, "c": [1]}]}
    alone, pruned = make_search(space, **options), make_search(space, stop=stop, **options, **LOSS)
    for index in range(13):
        assert pruned.ask(index) == alone.ask(index)
    assert pruned.ask(12) is None


# what cannot be meant


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"search": "tp"},
            "search='tp' is not known. Did you mean 'tpe'\\? The names are grid, random, tpe, gp, cmaes",
        ),
        ({"stop": "ashaa"}, "stop='ashaa' is not known. Did you mean 'asha'\\? The names are asha, median, hyperband"),
        ({"search": 3}, r"search=3 cannot be meant: wanted one of grid.* such as optuna.samplers.TPESampler\(\)"),
        ({"search": optuna.samplers.TPESampler}, r"search=TPESampler is a class: .* Write TPESampler\(\)"),
        ({"stop": optuna.pruners.MedianPruner}, r"stop=MedianPruner is a class: .* Write MedianPruner\(\)"),
        ({"stop": True}, "stop=True cannot be meant: wanted one of asha"),
        ({"stop": optuna.samplers.TPESampler()}, "stop=.* cannot be meant"),
        ({"seed": 1.5}, "seed=1.5 cannot be meant: wanted an integer"),
        ({"trials": 0}, "trials=0 cannot be meant: wanted how many configs to try, 1 or more"),
        ({"trials": 1, "start": [{"n": 1}, {"n": 2}]}, "start= has 2 configs, but trials=1"),
        ({"metrics": ()}, "search='tpe' needs a number to go by: give metric="),
        ({"metrics": (), "search": "grid", "stop": "asha"}, "stop='asha' needs a number to go by"),
        ({"modes": ("low",)}, "mode='low' cannot be meant"),
        ({"metrics": ("loss", "f1")}, "2 metrics have 1 modes: give each metric its own"),
        (
            {"metrics": ("loss", "f1"), "modes": ("min", "max"), "stop": "asha"},
            "stop='asha' goes by one metric, and there are 2: loss, f1. Leave stop= out, or give one metric",
        ),
        (
            {"metrics": ("loss", "f1"), "modes": ("min", "max"), "search": "cmaes"},
            "search='cmaes' goes by one metric, .* Use 'tpe' or 'gp'",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make_search({"n": range(9)}, **(LOSS | options))


def test_cmaes_without_numbers_is_refused() -> None:
    with pytest.raises(OptionError, match=r"search='cmaes' moves numbers, and this space has none\. Use"):
        make_search({"act": ["relu", "tanh"], "k": 3}, search="cmaes", **LOSS)


def test_without_optuna_grids_and_chance_work_and_all_else_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert make_search({"a": [1]}, search="grid").ask(0) == {"a": 1}
    assert make_search({"a": uniform(0, 1)}, search="random").ask(0)
    needing: list[tuple[dict[str, Any], str]] = [
        ({"search": "tpe"}, "search='tpe'"),
        ({"search": "random", "stop": "asha"}, "stop='asha'"),
    ]
    for options, what in needing:
        with pytest.raises(MissingExtra) as error:
            make_search({"a": [1, 2]}, **options, **LOSS)
        assert said(error) == f"{what} needs optuna, which is not installed. Run: pip install 'kalavai-nb[search]'"


@pytest.mark.parametrize(("search", "package"), [("cmaes", "cmaes"), ("gp", "scipy")])
def test_what_a_sampler_needs_is_missed_at_once(monkeypatch: pytest.MonkeyPatch, search: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"search='{search}' needs {package}, which is not installed"):
        make_search(SPACE, search=search, **LOSS)


# Optuna's samplers


@pytest.mark.parametrize("search", ["tpe", "cmaes", "gp"])
def test_the_same_seed_gives_the_same_trials(search: str) -> None:
    configs = drive(make_search(SPACE, search=search, seed=3, **LOSS), 0, 14)
    assert drive(make_search(SPACE, search=search, seed=3, **LOSS), 0, 14) == configs
    assert drive(make_search(SPACE, search=search, seed=4, **LOSS), 0, 3) != configs[:3]
    for config in configs:
        assert Space(SPACE).check(config) == config
        assert list(config) == list(SPACE)
        assert (type(config["n"]), type(config["lr"])) == (int, float)


def test_tpe_learns_better_than_chance() -> None:
    learnt = drive(make_search(SPACE, seed=1, **LOSS), 0, 40)
    by_chance = drive(make_search(SPACE, search="random", seed=1), 0, 40)
    assert sum(map(loss, learnt[20:])) < sum(map(loss, by_chance[20:])) / 2


def test_many_trials_at_a_time_differ() -> None:
    search = make_search(SPACE, seed=0, **LOSS)
    drive(search, 0, 12)
    at_once = [search.ask(index) for index in range(12, 24)]
    assert len({config["lr"] for config in at_once if config}) == 12


def test_a_start_comes_first_also_with_optuna() -> None:
    start = [{"lr": 0.01, "n": 4, "act": "tanh"}, {"lr": 0.1, "n": 1, "act": "relu"}]
    search = make_search(SPACE, start=start, trials=3, **LOSS)
    assert [search.ask(0), search.ask(1)] == [{**config, "epochs": 10} for config in start]
    assert search.ask(2) not in start
    assert search.ask(3) is None
    assert [trial.params for trial in study_of(search).trials[:2]] == start


def test_a_config_that_was_given_out_is_the_callers_own() -> None:
    search = make_search(SPACE, **LOSS)
    first = search.ask(0)
    assert first is not None
    first["n"] = "changed"
    assert search.ask(0) != first
    assert search.ask(0) == search.ask(0)


def test_a_sampler_of_the_users_own() -> None:
    sampler = optuna.samplers.NSGAIISampler(population_size=4, seed=0)
    search = make_search(SPACE, search=sampler, **LOSS)
    drive(search, 0, 10)
    assert study_of(search).sampler is sampler


def test_several_metrics_have_a_front() -> None:
    search = make_search(SPACE, metrics=("loss", "f1"), modes=("min", "max"))
    drive(search, 0, 15, lambda config: {"loss": loss(config), "f1": config["lr"]})
    search.ask(15)
    assert search.report(15, 0, {"loss": 1.0}) is False
    study = study_of(search)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.best_trials
    assert {"values_loss", "values_f1"} <= set(study.trials_dataframe().columns)


def test_choices_that_optuna_cannot_hold_are_texts_there_and_themselves_in_configs() -> None:
    layers = [[64, 64], {"wide": 1}, loss, random.Random(0), np.ones(2)]
    search = make_search({"layers": layers, "n": [np.float64(0.5), np.float64(2)], "same": [1, True]}, **LOSS)
    configs = drive(search, 0, 30, lambda config: 1.0)
    assert all(any(config["layers"] is layer for layer in layers) for config in configs)
    study = study_of(search)
    texts = {trial.params["layers"] for trial in study.trials}
    assert texts == {"[64, 64]", "{'wide': 1}", "loss", "<random.Random object>", "array([1., 1.])"}
    assert {trial.params["n"] for trial in study.trials} == {0.5, 2.0}
    assert {trial.params["same"] for trial in study.trials} == {"1", "True"}
    assert {type(config["same"]) for config in configs} == {int, bool}


def test_choices_that_look_alike_are_numbered() -> None:
    makers = [lambda: 1, lambda: 2, "x" * 100]
    search = make_search({"make": makers}, **LOSS)
    configs = drive(search, 0, 12, lambda config: 0.0)
    labels = {trial.params["make"] for trial in study_of(search).trials}
    assert labels == {"0: <lambda>", "1: <lambda>", f"2: '{'x' * 58}…"}
    assert {id(config["make"]) for config in configs} == {id(make) for make in makers}


def test_a_space_of_constants_is_one_config_again_and_again() -> None:
    search = make_search({"k": 3}, **LOSS)
    assert drive(search, 0, 3, lambda config: 1.0) == [{"k": 3}] * 3


# what Optuna hears


def test_only_finite_numbers_are_told() -> None:
    search = make_search(SPACE, **LOSS)
    values = [1.0, math.nan, math.inf, "text", {"loss": 2.0}, {"other": 2.0}]
    for index, value in enumerate(values):
        search.tell(ended(index, search.ask(index), value))
    search.tell(ended(6, search.ask(6), state="FAILED"))
    search.tell(ended(99, {}, 1.0))
    trials = study_of(search).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL"]
    assert [trial.values for trial in trials if trial.values] == [[1.0], [2.0]]
    assert [trial.user_attrs["index"] for trial in trials] == list(range(7))
    assert trials[0].user_attrs["seconds"] == 1.5


def test_a_pruned_trial_has_its_last_number() -> None:
    search = make_search(SPACE, **LOSS)
    config = search.ask(0)
    search.report(0, 0, {"loss": 5.0, "other": 1.0})
    search.report(0, 1, {"loss": 4.0})
    search.tell(ended(0, config, state="PRUNED"))
    trial = study_of(search).trials[0]
    assert (trial.state.name, trial.value, trial.intermediate_values) == ("PRUNED", 4.0, {0: 5.0, 1: 4.0})


def test_a_stopped_trial_is_told_when_it_ends_at_last() -> None:
    search = make_search(SPACE, stop="asha", **LOSS)
    config = search.ask(0)
    search.report(0, 0, {"loss": 5.0})
    search.tell(ended(0, config, state="STOPPED"))
    study = study_of(search)
    assert study.trials[0].state.name == "RUNNING"
    assert search.ask(0) == config
    # the second attempt says its first steps again
    assert search.report(0, 0, {"loss": 6.0}) is False
    assert search.report(0, 1, {"loss": 3.0}) is False
    search.tell(ended(0, config, 3.0))
    assert study.trials[0].intermediate_values == {0: 5.0, 1: 3.0}
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_the_notebook_stays_quiet_and_optunas_verbosity_the_users_own() -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logging.getLogger("optuna").addHandler(handler)
    try:
        search = make_search(SPACE, search="cmaes", stop="hyperband", **LOSS)
        for index in range(8):
            config = search.ask(index)
            search.report(index, 0, {"loss": 1.0})
            search.tell(ended(index, config, 1.0))
        assert records == []
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        optuna.create_study()
        assert len(records) == 1
    finally:
        logging.getLogger("optuna").removeHandler(handler)


# pruning


def prune_bad_curves(search: Search, trials: int, steps: int, sign: int = 1) -> list[int]:
    """Trials of which every third is bad, side by side; the indices of those that were pruned."""
    pruned = []
    for index in range(trials):
        config = search.ask(index)
        base = 10.0 if index % 3 == 2 else 1.0 + index / 100
        for step in range(steps):
            if search.report(index, step, {"loss": sign * base / (step + 1)}):
                pruned.append(index)
                search.tell(ended(index, config, state="PRUNED"))
                break
        else:
            search.tell(ended(index, config, sign * base))
    return pruned


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("stop", ["asha", "median", "hyperband", optuna.pruners.PercentilePruner(50.0)])
def test_bad_curves_are_pruned(stop: Any, mode: str) -> None:
    search = make_search(SPACE, search="random", stop=stop, metrics=("loss",), modes=(mode,))
    pruned = prune_bad_curves(search, 30, 20, 1 if mode == "min" else -1)
    assert {index for index in range(9, 30) if index % 3 == 2} <= set(pruned) or stop == "hyperband"
    assert any(index % 3 == 2 for index in pruned)
    assert 0 not in pruned


def test_without_stop_nothing_is_pruned() -> None:
    assert prune_bad_curves(make_search(SPACE, **LOSS), 12, 6) == []


def test_a_number_that_is_lost_prunes_unless_it_is_the_first() -> None:
    search = make_search(SPACE, stop="median", **LOSS)
    for index in range(3):
        search.ask(index)
    assert search.report(0, 0, {"loss": math.nan}) is False
    assert search.report(0, 1, {"loss": math.nan}) is True
    assert search.report(1, 0, {"loss": 1.0}) is False
    assert search.report(1, 1, {"loss": math.inf}) is True
    assert search.report(2, 0, {"other": math.nan}) is False
    assert search.report(2, -1, {"loss": 1.0}) is False
    assert search.report(7, 0, {"loss": 1.0}) is False
    lenient = make_search(SPACE, **LOSS)
    lenient.ask(0)
    assert [lenient.report(0, step, {"loss": math.nan}) for step in range(3)] == [False] * 3


def test_median_meets_metrics_that_have_no_value_yet() -> None:
    search = make_search(SPACE, stop="median", **LOSS)
    for index in range(8):
        config = search.ask(index)
        assert [search.report(index, s, {"loss": n}) for s, n in enumerate((math.nan, 1.0, 0.5))] == [False] * 3
        search.tell(ended(index, config, 0.5))


# an earlier session


def earlier(search: str, count: int, **options: Any) -> list[Trial]:
    configs = drive(make_search(SPACE, search=search, **options, **LOSS), 0, count)
    return [ended(index, config, loss(config)) for index, config in enumerate(configs)]


@pytest.mark.parametrize("search", ["tpe", "gp", "cmaes"])
@pytest.mark.parametrize("count", [3, 12])
def test_what_an_earlier_session_tried_is_known_and_not_tried_again(search: str, count: int) -> None:
    trials = earlier(search, count, seed=0)

    def go_on() -> tuple[list[Any], optuna.Study]:
        again = make_search(SPACE, search=search, seed=0, **LOSS)
        for trial in trials:
            again.recall(trial)
        return drive(again, count, count + 3), study_of(again)

    configs, study = go_on()
    assert configs == go_on()[0]
    tried = [trial.config for trial in trials]
    assert not [config for config in configs if config in tried]
    assert [trial.params["lr"] for trial in study.trials[:count]] == [config["lr"] for config in tried]
    assert [trial.user_attrs["index"] for trial in study.trials] == list(range(count + 3))


def test_cmaes_goes_on_in_the_generation_it_was_in() -> None:
    again = make_search(SPACE, search="cmaes", **LOSS)
    for trial in earlier("cmaes", 20):
        again.recall(trial)
    again.ask(20)
    last = study_of(again).trials[-1]
    assert last.system_attrs["cma:generation"] >= 2


def test_recalled_trials_are_of_all_ends_and_any_index() -> None:
    config = {"lr": 0.1, "n": 2, "act": "relu", "epochs": 10}
    search = make_search(SPACE, stop="median", **LOSS)
    search.recall(ended(4, config, 1.0, 3.0, 2.0, math.nan))
    search.recall(ended(1, config, None, 3.0, 2.5, state="PRUNED"))
    search.recall(ended(2, config, state="FAILED"))
    search.recall(ended(3, config, state="STOPPED"))
    trials = study_of(search).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial.value for trial in trials] == [1.0, 2.5, None]
    assert trials[0].intermediate_values == {0: 3.0, 1: 2.0}
    assert search.ask(4) == config
    assert search.ask(0) is not None
    assert len(study_of(search).trials) == 4


def test_trials_of_another_space_are_left_out() -> None:
    search = make_search(SPACE, **LOSS)
    fine: dict[str, Any] = {"lr": 0.1, "n": 2, "act": "relu", "epochs": 10}
    changes: list[dict[str, Any]] = [{"lr": 5.0}, {"n": 99}, {"act": "gelu"}, {"new": 1}, {"epochs": 3}]
    for index, change in enumerate(changes):
        search.recall(ended(index, fine | change, 1.0))
    search.recall(ended(9, "no dict", 1.0))
    search.recall(ended(10, {"lr": 0.1}, 1.0))
    assert study_of(search).trials == []
    assert search.ask(0) is not None


@pytest.mark.parametrize("stop", ["asha", "hyperband"])
def test_recalled_trials_compete_with_those_that_run(stop: str) -> None:
    search = make_search(SPACE, search="random", stop=stop, **LOSS)
    for index in range(8):
        curve = [1.0 / (step + 1) for step in range(20)]
        search.recall(ended(index, make_search(SPACE, search="random").ask(index), 0.05, *curve))
    search.ask(8)
    assert any(search.report(8, step, {"loss": 9.0}) for step in range(17))


def test_choices_that_came_home_as_copies_are_recalled() -> None:
    class_choices = [[1, 2], np.ones(2), inspect.signature, re.compile("a")]
    search = make_search({"c": class_choices}, **LOSS)
    for index, value in enumerate([[1, 2], np.ones(2), inspect.signature, re.compile("a")]):
        search.recall(ended(index, {"c": value}, float(index)))
    assert len(study_of(search).trials) == 4


# the study, with Optuna's own tools


def load(path: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))


@pytest.fixture
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.mark.usefixtures("quiet")
def test_the_study_is_optunas_own(tmp_path: Path) -> None:
    search = make_search(SPACE, **LOSS)
    configs = drive(search, 0, 12)
    study = study_of(search)
    best = min(configs, key=loss)
    assert study.best_params == {name: best[name] for name in ("lr", "n", "act")}
    assert study.best_value == loss(best)
    assert study.direction.name == "MINIMIZE"
    frame = study.trials_dataframe()
    assert frame["value_loss"].tolist() == [loss(config) for config in configs]
    assert frame["user_attrs_index"].tolist() == list(range(12))
    assert set(optuna.importance.get_param_importances(study)) == {"lr", "n", "act"}
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "copy.log"))
    optuna.copy_study(
        from_study_name=study.study_name,
        from_storage=study._storage,
        to_storage=optuna.storages.JournalStorage(backend),
    )
    assert [trial.params for trial in load(tmp_path / "copy.log").trials] == [trial.params for trial in study.trials]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "object"])
def test_a_study_in_a_file_is_made_anew_by_each_session(tmp_path: Path, sampler: str) -> None:
    path = tmp_path / "below" / "study.log"
    options: dict[str, Any] = {"stop": "asha", "path": path, **LOSS}
    trials: list[Trial] = []
    for session in range(3):
        search = make_search(
            SPACE, search=optuna.samplers.TPESampler(seed=session) if sampler == "object" else sampler, **options
        )
        for trial in trials:
            search.recall(trial)

        def work(search: Search = search) -> None:
            for index in range(len(trials), len(trials) + 7):
                config = search.ask(index)
                search.report(index, 0, {"loss": 1.0})
                trials.append(ended(index, config, loss(config or {}), 1.0))
                search.tell(trials[-1])

        # the sweep's own thread
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        kept = load(path)
        assert [trial.value for trial in kept.trials] == [trial.value for trial in trials]
        assert [trial.intermediate_values for trial in kept.trials] == [{0: 1.0}] * len(trials)
        assert kept.metric_names == ["loss"]
    assert len(trials) == 21
    assert not list(path.parent.glob("*.lock"))
