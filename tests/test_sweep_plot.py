"""The picture of a sweep: what is worth drawing, and that a notebook shows it."""

from __future__ import annotations

import io
import math
import random
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import matplotlib.style
import matplotlib.text
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kalavai_nb.errors import MissingExtra, OptionError, SweepError
from kalavai_nb.plot.parameters import Axis, flattened, influence, parameters_of
from kalavai_nb.plot.plot import MAX_CURVES, MAX_PARAMETERS, Picture, picture_of, plot, spread
from kalavai_nb.state import Report, Trial, TrialState
from notebook import Notebook

ROOT = Path(__file__).parent.parent


def done(index: int, config: Any, value: Any, **more: Any) -> Trial:
    return Trial(index, TrialState.COMPLETE, config, value=value, **more)


def curve(*numbers: float, name: str = "loss") -> tuple[Report, ...]:
    return tuple(Report(step, {name: number}) for step, number in enumerate(numbers))


def sweep(count: int, parameters: int = 3, *, reports: int = 12, seed: int = 0) -> list[Trial]:
    """Trials of a search: some pruned, some failed, some NaN."""
    rng = random.Random(seed)
    trials = []
    for index in range(count):
        lr, optimizer = 10 ** rng.uniform(-5, -1), rng.choice(["adam", "sgd"])
        config = {"lr": lr, "batch": rng.choice([16, 32, 64]), "optimizer": optimizer}
        config |= {f"x{i}": rng.random() for i in range(parameters - 3)}
        config = dict(list(config.items())[:parameters])
        loss = (math.log10(lr) + 3) ** 2 / 10 + rng.random() / 20
        said = curve(*(loss + math.exp(-step / 4) for step in range(reports)))
        if loss > 0.2 and index % 3 == 0:
            trials.append(Trial(index, TrialState.PRUNED, config, reports=said[: reports // 2]))
        elif index % 17 == 5:
            trials.append(Trial(index, TrialState.FAILED, config, error=ValueError("no"), reports=said[:2]))
        else:
            trials.append(done(index, config, {"loss": math.nan if index % 19 == 7 else loss}, reports=said))
    return trials


def axes_of(figure: Figure) -> dict[str, Axes]:
    """By what stands on their x axis, or above them."""
    return {ax.get_xlabel() or ax.get_title(loc="left"): ax for ax in figure.get_axes()}


def texts_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def size_of(figure: Figure) -> tuple[int, int]:
    """Renders it, as a notebook does."""
    png, metadata = figure._repr_png_()  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (2 * metadata["width"], 2 * metadata["height"])
    return metadata["width"], metadata["height"]


# what is drawn


def test_three_panels_and_what_stands_above_them() -> None:
    figure = plot(sweep(60), "loss", "min")
    axes = axes_of(figure)
    assert list(axes) == ["lr", "batch", "optimizer", "one line per complete trial", "step"]
    assert axes["lr"].get_xscale() == "log"
    assert axes["lr"].get_ylabel() == axes["step"].get_ylabel() == "loss"
    assert [label.get_text() for label in axes["optimizer"].get_xticklabels()] == ["adam", "sgd"]
    text = texts_of(figure)
    assert "loss by 3 parameters" in text
    assert "60 trials: " in text
    assert "without a finite number" in text
    assert " pruned" in text
    best = min((t for t in sweep(60) if t.value and t.value["loss"] == t.value["loss"]), key=lambda t: t.value["loss"])
    assert f"best: {best.value['loss']:.5g} in trial {best.index} at lr=" in text
    assert size_of(figure)[0] == 1000


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_is_best_in_the_given_mode(mode: str) -> None:
    trials = [done(index, {"x": index}, {"acc": index / 10}) for index in range(8)]
    picture = picture_of(trials, "acc", mode)
    best = 0 if mode == "min" else 7
    assert picture.order[0] == best
    assert picture.shades[best] == 0
    assert picture.shades.max() == 1
    assert f"in trial {best} at x={best}" in picture.notes[0]


def test_trials_that_are_not_complete() -> None:
    trials = [
        done(0, {"x": 1}, 0.5),
        Trial(1, TrialState.PRUNED, {"x": 2}, reports=curve(3, 2)),
        Trial(2, TrialState.FAILED, {"x": 3}, reports=curve(3, 1)),
        Trial(3, TrialState.RUNNING, {"x": 4}, reports=curve(2, 0.1)),
        Trial(4, TrialState.WAITING, {"x": 5}),
        Trial(5, TrialState.PRUNED, {"x": 6}),
        done(6, {"x": 7}, math.nan),
        done(7, {"x": 8}, math.inf),
        done(8, {"x": 9}, None),
    ]
    picture = picture_of(trials, "loss", "min")
    assert list(picture.metric.numbers) == [0.5, 2]
    assert list(picture.is_pruned) == [False, True]
    assert [c.is_pruned for c in picture.curves] == [True, False, False]
    counted = "9 trials: 1 waiting, 1 running, 4 complete (3 without a finite number), 1 failed, 2 pruned"
    assert picture.notes[1] == counted
    size_of(plot(trials, "loss", "min"))


def test_curves_of_the_metric_else_of_what_most_reported() -> None:
    both = tuple(Report(step, {"loss": step, "acc": -step}) for step in range(3))
    trials = [done(0, 1, {"acc": 1}, reports=both), done(1, 2, {"acc": 2}, reports=curve(1, 2))]
    assert picture_of(trials, "acc", "max").curves_of == "acc"
    assert [list(c.numbers) for c in picture_of(trials, "acc", "max").curves] == [[0, -1, -2]]
    other = [done(0, 1, {"f1": 1}, reports=both), done(1, 2, {"f1": 2}, reports=curve(1, 2))]
    assert picture_of(other, "f1", "max").curves_of == "loss"
    assert picture_of([done(0, 1, 1.0), done(1, 2, 2.0)], None, "min").curves == []
    assert picture_of([done(0, 1, 1.0, reports=curve(3))], None, "min").curves == [], "a point is no curve"


def test_the_best_curves_are_kept_where_there_are_many() -> None:
    trials = [done(i, {"x": i}, {"loss": i}, reports=curve(i + 1, i)) for i in range(1000)]
    trials += [Trial(1000 + i, TrialState.PRUNED, {"x": i}, reports=curve(i + 2, i + 1)) for i in range(1000)]
    picture = picture_of(trials, "loss", "min")
    assert len(picture.curves) == MAX_CURVES
    assert [c.numbers[-1] for c in picture.curves[:30]] == list(range(30))
    assert picture.curves[74].numbers[-1] == 999
    assert all(c.is_pruned for c in picture.curves[75:])
    assert picture.reporting == 2000
    long = [done(0, 1, 1.0, reports=curve(*range(100_000)))]
    assert len(picture_of(long, None, "min").curves[0].steps) <= 400
    assert picture_of(long, None, "min").curves[0].steps[-1] == 99_999


def test_spread_keeps_the_top_and_the_ends() -> None:
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(range(100), 10) == [0, 1, 2, 3, 4, 5, 28, 52, 75, 99]


def test_far_outliers_do_not_hide_the_rest() -> None:
    trials = [done(i, {"x": i}, {"loss": 1e9 if i in (3, 33) else -1 + i / 40}) for i in range(40)]
    picture = picture_of(trials, "loss", "min")
    assert picture.limits == (-1, pytest.approx(-0.025))
    figure = plot(trials, "loss", "min")
    assert "▲ 2 far above" in texts_of(figure)
    assert axes_of(figure)["x"].get_ylim()[1] < 1
    flipped = [done(i, {"x": i}, {"acc": -t.value["loss"]}) for i, t in enumerate(trials)]
    assert "▼ 2 far below" in texts_of(plot(flipped, "acc", "max"))


def test_a_metric_of_many_sizes_has_a_log_axis() -> None:
    trials = [done(i, {"x": i, "y": i % 3}, 10.0 ** -(i % 9)) for i in range(30)]
    figure = plot(trials, None, "min")
    assert axes_of(figure)["x"].get_yscale() == "log"
    size_of(figure)


# parameters


def names(configs: list[Any]) -> list[str]:
    return [axis.name for axis in parameters_of(configs)[0]]


def axis_of(values: list[Any]) -> Axis:
    (axis,) = parameters_of([{"x": value} for value in values])[0]
    return axis


def test_only_parameters_that_vary() -> None:
    assert names([{"a": 1, "b": 2, "c": {"d": 1, "e": "f"}}, {"a": 1, "b": 3, "c": {"d": 2, "e": "f"}}]) == ["b", "c.d"]
    assert names([{"a": 1}, {"a": 1.0}, {"a": np.float32(1)}]) == []
    assert names([{"a": 1}, {"a": 1, "b": 2}]) == ["b"]


@dataclass
class Options:
    lr: float
    more: Any = None


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("config", "flat"),
    [
        (3, {"config": 3}),
        ("text", {"config": "text"}),
        (None, {"config": None}),
        ([1, 2], {"config": [1, 2]}),
        ({"a": {"b": {}, "c": 1}, 2: 3}, {"a.b": {}, "a.c": 1, "2": 3}),
        (Options(0.1, {"a": 1}), {"lr": 0.1, "more.a": 1}),
        (Pair(1, 2), {"a": 1, "b": 2}),
        (SimpleNamespace(a=1, b="c"), {"a": 1, "b": "c"}),
    ],
)
def test_configs_of_all_kinds(config: Any, flat: dict[str, Any]) -> None:
    assert flattened(config) == flat


def test_numbers_logs_and_categories() -> None:
    assert axis_of([1e-5, 1e-3, 1e-1, 2e-4]).log
    assert axis_of([16, 32, 64, 128]).log
    assert axis_of([16, 32, 64, 128]).ticks() == [16, 32, 64, 128]
    assert not axis_of([1, 2, 3, 4]).log
    assert axis_of([1, 2, 3, 4]).ticks() == [1, 2, 3, 4]
    assert not axis_of([-1, 1000]).log
    assert not axis_of([i / 1000 for i in range(1, 1000)]).log, "most of them are large"
    assert axis_of([i**2.2 for i in range(20)]).ticks() == []
    assert axis_of([True, False, True]).categories == ("False", "True")
    assert axis_of(["b", "a", "b"]).categories == ("a", "b")
    assert axis_of([None, 7, 3, 5]).categories == ("3", "5", "7", "None")
    assert list(axis_of([None, 7, 3, 5]).numbers) == [3, 2, 0, 1]
    assert axis_of([[1, 2], (1, 2), [3]]).categories == ("(1, 2)", "[1, 2]", "[3]")
    assert axis_of([math.sin, len, Options]).categories == ("Options", "len", "sin")
    assert axis_of([object(), np.zeros((2, 3))]).categories == ("ndarray 2×3", "object")
    mixed = axis_of([*range(20), None, "auto"])
    assert not mixed.categories
    assert np.isnan(mixed.numbers[-2:]).all()
    only_sometimes, _ = parameters_of([{"a": 1, "momentum": 0.9}, {"a": 2}])
    assert only_sometimes[1].categories == ("0.9", "–")
    assert axis_of([10**400, 1, 2]).numbers[0] == math.inf


def test_rare_categories_are_put_together_and_unlike_texts_left_out() -> None:
    values = [f"common {i % 8}" for i in range(80)] + [f"rare {i}" for i in range(12)]
    axis = axis_of(values)
    assert axis.categories[-1] == "11 others"
    assert len(axis.categories) == 10
    trials = [done(i, {"prompt": f"text {i}", "t": i}, i) for i in range(50)]
    picture = picture_of(trials, None, "min")
    assert [axis.name for axis in picture.parameters] == ["t"]
    assert picture.title == "value by 1 parameter (prompt: nearly all different)"
    assert picture.notes[0] == "best: 0 in trial 0 at t=0, prompt=text 0"
    texts = picture_of([done(i, f"text {i}", i) for i in range(50)], None, "min")
    assert [axis.name for axis in texts.parameters] == ["trial"]
    assert "config=text 0" in texts.notes[0]


def test_labels_are_short_and_still_tell_apart() -> None:
    axis = Axis("x", np.zeros(1), ("Answer the question in short words", "Answer the question as a pirate", "no"))
    assert axis.labels(16) == ["…in short words", "…as a pirate", "no"]
    assert all(len(label) <= 8 for label in axis.labels(8))
    assert Axis("x", np.zeros(1), ("[128, 128, 64]", "[64]")).labels(12) == ["[128, 128, …", "[64]"]


def test_what_explains_the_metric_is_drawn_where_there_are_many() -> None:
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.random(80) for i in range(12)}
    loss = (columns["x10"] - 0.5) ** 2 + 0.3 * columns["x11"]
    trials = [done(i, {name: column[i] for name, column in columns.items()}, loss[i]) for i in range(80)]
    picture = picture_of(trials, None, "min")
    assert len(picture.parameters) == MAX_PARAMETERS
    assert {"x10", "x11"} <= {axis.name for axis in picture.parameters}
    assert picture.title == "value by the 8 of 12 parameters that explain most of it"
    figure = plot(trials, None, "min")
    assert len(figure.get_axes()) == MAX_PARAMETERS + 1
    size_of(figure)
    weights = [influence(Axis(name, column), loss) for name, column in columns.items()]
    assert min(weights[10:]) > max(weights[:10])
    assert influence(Axis("x", np.arange(3.0)), np.array([1.0, 2, 3])) == 0, "too few to say"


def test_categories_and_grids_stand_side_by_side_where_many_trials_are() -> None:
    for values in (["a", "b"] * 50, [16, 32, 64] * 50):
        axis = axis_of(values)
        moved = axis.scaled(axis.jittered()) - axis.scaled(axis.numbers)
        assert len(np.unique(np.round(moved, 6))) > 40
        assert np.abs(moved).max() < 0.3
    assert list(axis_of([16, 32, 64]).jittered()) == [16, 32, 64]


# that it can be drawn


@pytest.mark.parametrize(
    "trials",
    [
        [done(0, {"x": 1}, 0.5)],
        [done(i, {"x": 1}, 0.5) for i in range(3)],
        [done(i, i, 0.0) for i in range(3)],
        [done(i, "ab"[i % 2], i) for i in range(30)],
        [done(i, object(), i) for i in range(5)],
        [done(i, (i, "x"), np.float32(i)) for i in range(5)],
        [done(i, {"x": 10.0**i, "y": None}, -(10.0**i)) for i in range(8)],
        [done(i, {"x": math.inf if i == 2 else i, "y": -i}, i) for i in range(8)],
        [done(i, {"x": math.nan if i == 2 else i, "y": -i}, i) for i in range(8)],
        [done(i, {"$x_$": "a$b", "y_%": i}, i) for i in range(4)],
        [done(i, {"a very long name of a parameter, too long to be read": i, "z": -i}, i) for i in range(4)],
        [done(i, {"x": i, "y": -i}, i, reports=curve(math.nan, 1, math.inf)) for i in range(4)],
        [done(i, {"x": i, "y": -i}, i, reports=curve(math.nan, math.nan)) for i in range(4)],
        [done(i, {"x": i, "y": -i}, i, reports=curve(0, 0)) for i in range(4)],
    ],
    ids=str,
)
def test_odd_sweeps_are_drawn_without_a_warning(trials: list[Trial]) -> None:
    size_of(plot(trials, None, "min"))
    size_of(plot(trials, None, "max"))


@pytest.mark.parametrize("parameters", [1, 2, 5, 12])
def test_any_number_of_parameters(parameters: int) -> None:
    figure = plot(sweep(40, parameters), "loss", "min")
    shown = min(parameters, MAX_PARAMETERS)
    assert len(figure.get_axes()) == shown + (parameters > 1) + 1
    size_of(figure)


@pytest.mark.slow
def test_ten_thousand_trials() -> None:
    trials = sweep(10_000, 6)
    started = time.monotonic()
    png, _ = plot(trials, "loss", "min")._repr_png_()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 30
    assert len(png) < 2_000_000


def test_nobody_elses_matplotlib_is_touched() -> None:
    source = (
        # a look at rcParams["backend"] would choose one
        "import sys, matplotlib; before = dict(dict.items(matplotlib.rcParams))\n"
        "from kalavai_nb.state import Trial, TrialState\nfrom kalavai_nb.plot.plot import plot\n"
        "figure = plot([Trial(i, TrialState.COMPLETE, {'x': i, 'y': -i}, value=i) for i in range(5)], None, 'min')\n"
        "figure._repr_png_()\n"
        "print('matplotlib.pyplot' in sys.modules, dict(dict.items(matplotlib.rcParams)) == before)"
    )
    command = [sys.executable, "-W", "error", "-c", source]
    assert subprocess.check_output(command, cwd=ROOT, text=True).split() == ["False", "True"]


def test_it_is_light_in_a_dark_style_too() -> None:
    def corner_and_ticks(figure: Figure) -> tuple[Any, Any]:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        with Image.open(file) as image:
            ax = figure.get_axes()[0]
            return image.convert("RGB").getpixel((2, 2)), ax.get_yticklabels()[0].get_color()

    trials = sweep(20)
    plain = corner_and_ticks(plot(trials, "loss", "min"))
    with matplotlib.style.context("dark_background"):
        assert corner_and_ticks(plot(trials, "loss", "min")) == plain == ((255, 255, 255), "#5a6168")


CELL = """
from kalavai_nb.state import Trial, TrialState
from kalavai_nb.plot.plot import plot
figure = plot([Trial(i, TrialState.COMPLETE, {"x": i, "y": -i}, value=i) for i in range(5)], None, "min")
figure
"""


def test_a_notebook_shows_it_once(notebook: Notebook) -> None:
    first = notebook.ok(CELL).displays
    assert len(first) == 1
    assert first[0]["image/png"]
    after_pyplot = notebook.ok(f"%matplotlib inline\nimport matplotlib.pyplot as plt{CELL}").displays
    assert len(after_pyplot) == 1
    assert after_pyplot[0]["image/png"]
    assert notebook.ok("plot(figure and [Trial(0, TrialState.COMPLETE, 1, value=1)], None, 'min');").displays == []


# what is said instead


def failing(trials: list[Trial], metric: str | None = None, mode: str = "min") -> str:
    with pytest.raises(SweepError) as caught:
        plot(trials, metric, mode)
    return str(caught.value)


def test_nothing_to_plot_says_why() -> None:
    waiting = [Trial(i, TrialState.WAITING, i) for i in range(3)]
    assert failing([]) == "there is nothing to plot: the sweep has no trials."
    assert failing(waiting) == "there is nothing to plot yet: none of 3 trials is complete."
    assert "loss is NaN or infinite in all complete trials" in failing([done(0, 1, {"loss": math.nan})], "loss")
    text = failing([done(0, 1, {"loss": 1, "acc": 2})], "los")
    assert "metric='los' is no number in any complete trial; they returned dicts with 'loss', 'acc'" in text
    assert "their value is no number" in failing([done(0, 1, {"loss": 1})])
    assert "they returned str" in failing([done(0, 1, "text")])
    with pytest.raises(OptionError, match="mode='best' cannot be meant"):
        plot([done(0, 1, 1)], None, "best")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kalavai-nb\[examples\]'"):
        plot([done(0, 1, 1)], None, "min")


def test_what_to_draw_is_found_without_matplotlib() -> None:
    source = (
        "import sys, kalavai_nb.plot.plot; print([n for n in ('matplotlib', 'pandas', 'torch') if n in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", source], cwd=ROOT, text=True).strip() == "[]"
    assert isinstance(picture_of([done(0, 1, 1)], None, "min"), Picture)
    assert isinstance(plot, Callable)
