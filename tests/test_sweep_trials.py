"""What a trial can do, and what a sweep does for it: reports, checkpoints, files, fractions, memory, repeats."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import NotEnoughDevices, OptionError, SweepError
from kalavai_nb.state import Report, TrialState
from notebook import Notebook, listens_on


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kn.Pool]:
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("notebook"))
    with kn.Pool(devices=2, quiet=True) as pool:
        yield pool
    os.chdir(before)


def test_reports_come_home_in_order_and_count_as_the_value(pool: kn.Pool) -> None:
    def train(config: dict[str, float], trial: kn.LiveTrial) -> None:
        for step in range(5):
            trial.report(step, loss=config["lr"] / (step + 1))

    sweep = pool.map(train, [{"lr": 1.0}, {"lr": 0.5}], metric="loss", show=False).wait()
    assert sweep[0].reports == tuple(Report(step, {"loss": 1.0 / (step + 1)}) for step in range(5))
    assert sweep.best.index == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("trial.report(0.3, 5)", "wants a whole number and named metrics"),
        ("trial.report(5)", "wants a whole number and named metrics"),
        ("trial.report(1.5, loss=2)", "wants a whole number and named metrics"),
        ("trial.report(1, loss='low')", "wants numbers, got loss='low' of type str"),
    ],
)
def test_a_report_that_cannot_be_meant_is_the_trials_failure(pool: kn.Pool, call: str, says: str) -> None:
    def train(config: str, trial: kn.LiveTrial) -> None:
        eval(config)

    sweep = pool.map(train, [call], show=False).wait()
    assert says in str(sweep[0].error)


def test_a_trial_knows_where_it_is(pool: kn.Pool) -> None:
    def where(config: int, trial: kn.LiveTrial) -> tuple[object, ...]:
        return trial.index, trial.attempt, trial.device, trial.gpus, os.environ["CUDA_VISIBLE_DEVICES"]

    assert pool.map(where, [5, 6], show=False).values == [(0, 1, "cpu", 1, ""), (1, 1, "cpu", 1, "")]


def test_what_a_trial_leaves_in_its_directory_comes_home(pool: kn.Pool) -> None:
    def write(config: int, trial: kn.LiveTrial) -> int:
        (trial.dir / "plots").mkdir()
        (trial.dir / "plots" / "a.txt").write_text(f"plot {config}")
        if config:
            raise ValueError("too late")
        return config

    sweep = pool.map(write, [0, 1], show=False).wait()
    assert [(Path(t.directory) / "plots" / "a.txt").read_text() for t in sweep.trials] == ["plot 0", "plot 1"]
    assert isinstance(sweep[1].error, ValueError)


def test_random_numbers_differ_between_trials_and_follow_a_seed(pool: kn.Pool) -> None:
    def draw(config: int) -> tuple[float, float, float]:
        import random

        import numpy as np
        import torch

        return random.random(), float(np.random.rand()), float(torch.rand(1))

    values = pool.map(draw, [1] * 10, show=False).values
    for column in zip(*values, strict=True):
        assert len(set(column)) == 10
    first, second = (pool.map(draw, [1] * 4, seed=3, isolate=isolate, show=False).values for isolate in (True, False))
    assert first == second
    assert len(set(first)) == 4


def test_a_trial_whose_worker_dies_goes_on_from_its_checkpoint_elsewhere(pool: kn.Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "steps")

    def train(config: int, trial: kn.LiveTrial) -> tuple[int, int]:
        start = trial.load(0)
        for step in range(start, 20):
            with open(log, "a") as file:
                file.write(f"{config} {step} {trial.attempt}\n")
            time.sleep(0.1)
            trial.save(step + 1)
        return start, trial.attempt

    sweep = pool.map(train, [7, 8], show=False)
    while Path(log).exists() is False or "7 8 1" not in Path(log).read_text():
        time.sleep(0.01)
    device = next(d for d in pool.devices if str(d) == sweep.trials[0].device)
    below = psutil.Process(pool._opened.pid).children(recursive=True)
    next(p for p in below if listens_on(p, device.worker)).kill()
    (start, attempt), (other_start, other_attempt) = sweep.values
    assert attempt == 2
    assert start >= 8
    assert (other_start, other_attempt) == (0, 1)
    steps = Counter(line.split()[1] for line in Path(log).read_text().splitlines() if line.startswith("7 "))
    assert len(steps) == 20
    assert steps.total() <= 21, "at most the step that was cut off is done twice"


def test_a_stopped_trial_is_told_and_goes_on_from_its_checkpoint(pool: kn.Pool) -> None:
    def train(config: int, trial: kn.LiveTrial) -> int:
        start = trial.load(0)
        try:
            for step in range(start, 1000 if not start else start + 2):
                time.sleep(0.02)
                trial.report(step, loss=1.0)
        except kn.TrialStopped:
            trial.save(step)
            raise
        return start

    sweep = pool.map(train, [1], show=False)
    sweep._trials.wait_for(lambda: len(sweep.trials[0].reports) > 5)
    began = time.monotonic()
    sweep.stop()
    assert time.monotonic() - began < 3, "it was not killed but ended by itself"
    assert sweep[0].state is TrialState.STOPPED
    assert sweep.resume().values[0] >= 5


def test_one_trial_can_be_stopped_alone(pool: kn.Pool) -> None:
    def work(config: float) -> float:
        time.sleep(config)
        return config

    sweep = pool.map(work, [60, 0.2, 0.2, 60, 0.2], show=False)
    sweep._trials.wait_for(lambda: sweep.trials[0].state is TrialState.RUNNING)
    sweep.stop(0)
    sweep.stop(3)
    sweep.wait()
    assert [str(t.state) for t in sweep.trials] == ["STOPPED", "COMPLETE", "COMPLETE", "STOPPED", "COMPLETE"]


def test_fractions_pack_a_device_and_never_more(pool: kn.Pool, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def count_neighbours(config: int, trial: kn.LiveTrial) -> tuple[float, int, float, float]:
        began = time.monotonic()
        mine = Path(folder, f"{config}.here")
        mine.touch()
        time.sleep(0.5)
        here = len(list(Path(folder).glob("*.here")))
        mine.unlink()
        return trial.gpus, here, began, time.monotonic()

    sweep = pool.map(count_neighbours, range(12), gpus=0.5, isolate=True, show=False)
    values = sweep.values
    assert {gpus for gpus, *_ in values} == {0.5}
    assert max(here for _, here, *_ in values) == 4
    # by the clock of the function itself: what is between trials is not the function's
    ran = [(trial.device, began, ended) for trial, (*_, began, ended) in zip(sweep.trials, values, strict=True)]
    assert len({device for device, *_ in ran}) == 2
    for device, began, _ in ran:
        assert sum(d == device and b <= began < e for d, b, e in ran) <= 2


def test_two_devices_for_a_trial(pool: kn.Pool) -> None:
    sweep = pool.map(lambda config, trial: trial.gpus, range(3), gpus=2, show=False)
    assert sweep.values == [2, 2, 2]
    assert all(trial.device.endswith("cpu:0,1") for trial in sweep.trials)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"gpus": 3}, NotEnoughDevices, "asked for 3 devices in groups of 3 on one machine, but the pool has 2"),
        ({"gpus": 1.5}, OptionError, "gpus=1.5 cannot be meant: wanted a share of one device"),
        ({"gpus": 0}, OptionError, "gpus=0 cannot be meant"),
        ({"where": {"type": "H100"}}, NotEnoughDevices, "no device of the pool is like that"),
        ({"where": "vram=9999"}, NotEnoughDevices, "no device of the pool is like that"),
        ({"where": {"speed": 3}}, OptionError, "where= has 'speed', which is none of type, vram, host"),
        ({"timeout": "soon"}, OptionError, "timeout=soon cannot be meant"),
        ({"mode": "best"}, OptionError, "wanted 'min' or 'max'"),
        ({"isolate": "never"}, OptionError, "wanted True, False or 'auto'"),
        ({"retries": -1}, OptionError, "wanted how often a failed trial is tried again"),
        ({"max_parallel": 0}, OptionError, "wanted 1 or more"),
        ({"name": " "}, OptionError, "wanted a text that names the sweep"),
    ],
)
def test_options_that_cannot_be_meant_get_a_sentence(
    pool: kn.Pool, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        pool.map(abs, [1], show=False, **options)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert pool.map(abs, [-1], show=False).values == [1]


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ([], "at least one config, got an empty list"),
        ((x for x in range(3)), "of type generator; give an iterator as list(…)"),
        (map(abs, [1]), "of type map"),
        ({"lr": [1, 2]}, "got one dict. For every combination of its values: pool.sweep"),
        ("abc", "got a text"),
        (3, "got 3 of type int"),
    ],
)
def test_configs_that_cannot_be_meant_get_a_sentence(pool: kn.Pool, configs: object, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        pool.map(abs, configs, show=False)  # type: ignore[arg-type]
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda: 1, "this one takes nothing"),
        (lambda a, b, c: 1, "this one takes a, b, c"),
        (lambda a, *, b: 1, "this one takes a, b"),
        ("train", "wants a function that takes a config, got a str"),
    ],
)
def test_functions_that_cannot_be_called_get_a_sentence(pool: kn.Pool, fn: object, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        pool.map(fn, [1], show=False)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_second_parameter_with_a_default_is_not_the_trial(pool: kn.Pool) -> None:
    def work(config: int, factor: int = 3) -> int:
        return config * factor

    def told(config: int, trial: object = None) -> bool:
        return trial is not None

    assert pool.map(work, [2], show=False).values == [6]
    assert pool.map(told, [2], show=False).values == [True]


def test_a_trial_that_runs_out_of_gpu_memory_is_tried_again_alone(pool: kn.Pool) -> None:
    def train(config: int, trial: kn.LiveTrial) -> float:
        import torch

        if trial.gpus < 1 and config == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        time.sleep(0.1)
        return trial.gpus

    sweep = pool.map(train, range(6), gpus=0.5, show=False)
    assert sweep.values == [0.5, 0.5, 0.5, 1, 0.5, 0.5]
    assert sweep[3].attempts == 2
    assert "ran out of GPU memory at gpus=0.5; ran again alone" in sweep.table().loc[3, "note"]


def test_out_of_memory_on_the_largest_device_is_a_failure(pool: kn.Pool) -> None:
    def train(config: int) -> None:
        raise RuntimeError("CUDA out of memory")

    sweep = pool.map(train, [1], show=False).wait()
    assert sweep[0].state is TrialState.FAILED
    assert sweep[0].attempts == 1


def test_retries_come_behind_all_others(pool: kn.Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "order")

    def flaky(config: int, trial: kn.LiveTrial) -> int:
        with open(log, "a") as file:
            file.write(f"{config}\n")
        if config == 0 and trial.attempt < 3:
            raise ConnectionError("not yet")
        return trial.attempt

    sweep = pool.map(flaky, range(5), retries=2, max_parallel=1, show=False)
    assert sweep.values == [3, 1, 1, 1, 1]
    assert Path(log).read_text().split() == ["0", "1", "2", "3", "4", "0", "0"]


def test_max_parallel_is_the_most_at_a_time(pool: kn.Pool) -> None:
    sweep = pool.map(lambda x: time.sleep(0.1), range(5), max_parallel=1, show=False).wait()
    assert len({trial.device for trial in sweep.trials}) == 1


def test_a_straggler_that_may_be_repeated_is_overtaken(pool: kn.Pool, tmp_path: Path) -> None:
    flag = str(tmp_path / "slow")

    def work(config: int) -> int:
        if config == 0 and not Path(flag).exists():
            Path(flag).touch()
            time.sleep(120)  # this device is terribly slow
        time.sleep(0.2)
        return config

    began = time.monotonic()
    assert pool.map(work, range(6), repeatable=True, show=False).values == list(range(6))
    assert time.monotonic() - began < 60


def test_short_trials_share_a_process_and_long_or_failing_ones_do_not(pool: kn.Pool) -> None:
    def pid(config: float) -> int:
        time.sleep(config)
        return os.getpid()

    short = pool.map(pid, [0.0] * 20, show=False).values
    assert len(set(short)) <= 4
    long = pool.map(pid, [1.1] * 4, show=False).values
    assert len(set(long)) == 4

    def fail_then_pid(config: int) -> int:
        if config == 0:
            raise ValueError
        return os.getpid()

    sweep = pool.map(fail_then_pid, [1, 0, 1], max_parallel=1, show=False).wait()
    assert sweep[0].value != sweep[2].value, "whatever a failure left behind is gone with its process"


def test_nothing_of_a_trial_reaches_the_next_in_its_process(pool: kn.Pool) -> None:
    seen: list[int] = []

    def remember(config: int) -> list[int]:
        seen.append(config)
        return list(seen)

    assert pool.map(remember, range(6), show=False).values == [[x] for x in range(6)]


def test_configs_can_be_added_while_it_runs_and_after(pool: kn.Pool) -> None:
    def work(config: int) -> int:
        time.sleep(0.1)
        return config

    sweep = pool.map(work, [0, 1], show=False)
    sweep.add([2, 3])
    assert sweep.values == [0, 1, 2, 3]
    assert sweep.add([4]).values == [0, 1, 2, 3, 4]
    assert [trial.value for trial in sweep[1:3]] == [1, 2]
    assert sweep[-1].value == 4


def test_the_log_of_a_running_trial_can_be_read(pool: kn.Pool) -> None:
    def talk(config: int) -> None:
        print("so far so good", flush=True)
        time.sleep(60)

    sweep = pool.map(talk, [0], show=False)
    while "so far so good" not in sweep.log(0):
        time.sleep(0.05)
    sweep.stop()
    assert "so far so good" in sweep.log(0)


def test_values_that_cannot_come_home_are_that_trials_failure(pool: kn.Pool) -> None:
    import threading

    sweep = pool.map(lambda x: threading.Lock() if x else x, [0, 1], show=False).wait()
    assert "what it returned, a lock, cannot be sent home" in str(sweep[1].error)
    assert sweep[0].value == 0


def test_best_says_what_was_wrong_with_the_metric(pool: kn.Pool) -> None:
    sweep = pool.map(lambda x: {"accuracy": x}, [1, 2], metric="loss", show=False).wait()
    with pytest.raises(
        SweepError, match=r"trial 0 gave no number under metric='loss': it returned a dict with accuracy"
    ):
        sweep.best  # noqa: B018
    nan = pool.map(lambda x: {"loss": float("nan") if x == 1 else x}, [3, 1, 2], metric="loss", show=False).wait()
    assert nan.best.index == 2, "NaN is never best"


def test_a_stopped_trial_can_clean_up(pool: kn.Pool, tmp_path: Path) -> None:
    begun, ended = str(tmp_path / "begun"), str(tmp_path / "ended")

    def work(config: int) -> None:
        try:
            Path(begun).touch()
            time.sleep(60)
        finally:
            Path(ended).touch()

    sweep = pool.map(work, [0], show=False)
    while not Path(begun).exists():
        time.sleep(0.01)
    began = time.monotonic()
    sweep.stop()
    assert time.monotonic() - began < 4, "it was interrupted, not killed after 5 s"
    assert Path(ended).exists()
    assert sweep[0].state is TrialState.STOPPED


def test_many_sweeps_at_once_all_get_on(pool: kn.Pool) -> None:
    def work(config: int) -> int:
        time.sleep(0.1)
        return config

    sweeps = [pool.map(work, range(6), gpus=gpus, show=False) for gpus in (1, 0.5, 2, 1)]
    assert [sweep.values for sweep in sweeps] == [list(range(6))] * 4


def test_what_a_trial_does_to_its_process_does_not_reach_the_next(pool: kn.Pool) -> None:
    import sys

    def work(config: int) -> tuple[str, str | None]:
        found = os.getcwd(), os.environ.get("LEFT_BEHIND")
        os.chdir("/")
        os.environ["LEFT_BEHIND"] = "yes"
        if config % 3 == 0:
            sys.stdout.close()
        if config % 3 == 1:
            sys.stdout = None  # type: ignore[assignment]
        return found

    assert set(pool.map(work, range(9), isolate=False, show=False).values) == {(os.getcwd(), None)}


def test_errors_that_cannot_be_printed_are_errors_all_the_same(pool: kn.Pool) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def work(config: int) -> None:
        raise ValueError("\udcff") if config else Odd

    sweep = pool.map(work, [0, 1], show=False).wait()
    assert [type(trial.error).__name__ for trial in sweep.trials] == ["Odd", "ValueError"]
    assert len(sweep.table()) == 2
    assert "2 failed" in repr(sweep)


def test_configs_that_cannot_be_shown_are_run_all_the_same(pool: kn.Pool) -> None:
    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    sweep = pool.map(lambda config: 10**400 if config else 1, [Silent(), None], show=False)
    assert sweep.values == [10**400, 1]
    assert "Silent instance" in repr(sweep[0])


def test_links_in_a_trials_directory_stay_behind_and_the_value_comes_home(pool: kn.Pool) -> None:
    def work(config: int, trial: kn.LiveTrial) -> float:
        (trial.dir / "run").mkdir()
        os.symlink(str(trial.dir / "run"), trial.dir / "latest")
        os.mkfifo(trial.dir / "pipe")
        (trial.dir / "kept").touch()
        return 0.93

    sweep = pool.map(work, [0], show=False)
    assert sweep.values == [0.93]
    assert sorted(os.listdir(sweep[0].directory)) == ["kept", "run"]


def test_configs_are_never_lost_between_two_runs(pool: kn.Pool) -> None:
    sweep = pool.map(abs, [0], show=False)
    for number in range(60):
        sweep.add([-number])
        time.sleep(0.003 * (number % 7))  # so that some meet the end of a run
    assert sweep.values == [0, *range(60)]


def test_an_index_that_is_not_there_gets_a_sentence(pool: kn.Pool) -> None:
    sweep = pool.map(lambda x: time.sleep(0.5), [0], show=False)
    for ask in (sweep.stop, sweep.log, sweep.checkpoint):
        with pytest.raises(IndexError, match="there is no trial 9: they are numbered from 0 to 0"):
            ask(9)
    assert sweep.values == [None]


def test_a_second_copy_that_fails_is_not_tried_again_and_again(pool: kn.Pool, tmp_path: Path) -> None:
    def alone(config: int) -> int:
        os.close(os.open(tmp_path / f"lock-{config}", os.O_CREAT | os.O_EXCL))
        time.sleep(3 if config == 0 else 0.2)
        return config

    sweep = pool.map(alone, range(6), repeatable=True, show=False)
    assert sweep.values == list(range(6))
    assert sweep[0].attempts <= 2


def test_names_of_values_do_not_hide_the_tables_own(pool: kn.Pool) -> None:
    table = pool.map(lambda x: {"state": 1, "lr": 2}, [{"lr": 3, "error": 4}], show=False).wait().table()
    assert table.loc[0].to_dict() | {"seconds": 0, "device": ""} == {
        "state": "COMPLETE", "config.lr": 3, "config.error": 4, "value.state": 1, "lr": 2,
        "seconds": 0, "device": "", "attempts": 1, "error": "",
    }  # fmt: skip


def test_reports_from_several_threads_each_get_their_verdict(pool: kn.Pool) -> None:
    def train(config: dict[str, int], trial: kn.LiveTrial) -> float:
        import threading

        def say(first: int) -> None:
            for step in range(first, 40, 2):
                trial.report(step, loss=1.0)

        threads = [threading.Thread(target=say, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1.0

    sweep = pool.sweep(train, {"a": [1]}, metric="loss", search="grid", stop="median", show=False)
    assert sweep.values == [1.0]


def test_a_waiting_cell_and_another_sweep_get_their_turn(notebook: Notebook) -> None:
    notebook.ok("import kalavai_nb as kn, time\npool = kn.Pool(devices=2, quiet=True)\nkn.current_pool()")
    notebook.ok("long = pool.map(lambda x: time.sleep(0.3), range(60), show=False)\nlong[0]")
    cell = notebook.ok("%%pool gpus=2\nprint('in between')")
    assert "[0-1] in between" in cell.stream()
    notebook.ok("short = pool.map(lambda x: x, range(4), show=False)\nshort.values")
    counts = notebook.ok("print(long._trials.ended)\nlong.stop()").stream()
    assert int(counts) < 60, "neither had to wait for the whole sweep"
