"""The journal: running a cell again is its resume, and what was found out outlives pools and kernels."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import NotEnoughDevices, SendError, SweepError
from kalavai_nb.state import TrialState
from kalavai_nb.trials.entries import Unreadable
from kalavai_nb.trials.journal import UNNAMED_KEPT, Journal
from kalavai_nb.trials.launch import restored
from kalavai_nb.trials.shelf import Shelf
from notebook import Notebook


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = os.getcwd()
    directory = tmp_path_factory.mktemp("notebook")
    os.chdir(directory)
    yield directory
    os.chdir(before)


@pytest.fixture(scope="module")
def pool(directory: Path) -> Iterator[kn.Pool]:
    with kn.Pool(devices=2, quiet=True) as pool:
        yield pool


def runs_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def again(name: str) -> kn.Sweep:
    """The sweep as a kernel that has just been started would find it."""
    found = restored(Journal(Path.cwd() / ".kalavai"), name)
    assert found
    return found


def test_running_it_again_runs_what_failed_and_what_is_new(pool: kn.Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "runs")

    def work(config: dict[str, int]) -> int:
        with open(log, "a") as file:
            file.write(f"{config['x']} ")
        if config["x"] == 2 and len(open(log).read().split()) < 5:
            raise ValueError("only once")
        return config["x"] * 10

    configs = [{"x": x} for x in range(4)]
    first = pool.map(work, configs, name="again", show=False).wait()
    assert len(first.failed) == 1
    second = pool.map(work, [*configs, {"x": 9}], name="again", show=False)
    assert second.values == [0, 10, 20, 30, 90]
    assert sorted(runs_of(Path(log))) == sorted(["0", "1", "2", "3", "2", "9"])
    third = pool.map(work, [{"x": 9}, {"x": 0}], name="again", show=False)
    assert third.values == [90, 0]
    assert len(runs_of(Path(log))) == 6
    assert len(again("again").trials) == 5, "those that are not in the last run are still there"


def test_equal_configs_are_different_trials(pool: kn.Pool) -> None:
    import random

    sweep = pool.map(lambda x: random.random(), [{"a": 1}] * 10, name="equal", show=False)
    values = sweep.values
    assert len(set(values)) == 10
    more = pool.map(lambda x: random.random(), [{"a": 1}] * 12, name="equal", show=False).values
    assert more[:10] == values
    assert len(set(more)) == 12


def test_a_changed_function_is_noticed_and_said(pool: kn.Pool, capsys: pytest.CaptureFixture[str]) -> None:
    factor = 2

    def work(x: int) -> int:
        return x * factor

    pool.map(work, [1, 2], name="changes").wait()
    assert "changed" not in capsys.readouterr().out
    pool.map(work, [1, 2], name="changes").wait()
    assert "'changes': 2 of 2 trials were done before and are not run again" in capsys.readouterr().out
    factor = 3
    sweep = pool.map(work, [1, 2, 3], name="changes")
    assert sweep.values == [2, 4, 9]
    said = capsys.readouterr().out
    assert "work has changed since 'changes' was run before (factor). 2 results of the earlier one are kept" in said
    assert pool.map(work, [1, 2, 3], name="changes", resume=False, show=False).values == [3, 6, 9]


def test_everything_is_there_after_a_restart_and_without_a_pool(pool: kn.Pool) -> None:
    def work(config: dict[str, int], trial: kn.LiveTrial) -> dict[str, object]:
        print("hello", config["x"])
        trial.report(1, loss=0.5)
        if config["x"] == 0:
            trial.save({"weights": [1, 2, 3]})
        (trial.dir / "note").write_text("kept")
        if config["x"] == 1:
            raise KeyError("gone")
        return {"loss": 1.0 / (config["x"] + 1), "curve": np.arange(100_000) * config["x"]}

    before = pool.map(work, [{"x": x} for x in range(3)], name="restart", metric="loss", show=False).wait()
    after = again("restart")
    assert [str(t.state) for t in after.trials] == ["COMPLETE", "FAILED", "COMPLETE"]
    assert after.best.index == before.best.index == 2
    assert np.array_equal(after[2].value["curve"], np.arange(100_000) * 2)
    assert isinstance(after[1].error, KeyError)
    assert "hello 1" in after[1].log
    assert after[0].reports == before[0].reports
    assert after.checkpoint(0) == before.checkpoint(0) == {"weights": [1, 2, 3]}
    with pytest.raises(SweepError, match="trial 2 has saved no checkpoint"):
        after.checkpoint(2)
    assert Path(after[0].directory, "note").read_text() == "kept"
    assert list(after.table().columns) == list(before.table().columns)
    with pytest.raises(SweepError, match="1 of 3 trials of work have no value"):
        after.values  # noqa: B018
    with pytest.raises(SweepError, match="run the cell that began it again, with name='restart'"):
        after.resume()


def test_a_checkpoint_on_its_way_does_not_wipe_the_value(pool: kn.Pool) -> None:
    def work(config: int, trial: kn.LiveTrial) -> int:
        for size in (1, 2_000_000):
            trial.save(np.zeros(size))
        return config * 10

    assert pool.map(work, [1, 2, 3, 4], name="both", show=False).values == [10, 20, 30, 40]
    after = again("both")
    assert after.values == [10, 20, 30, 40]
    assert [len(after.checkpoint(index)) for index in range(4)] == [2_000_000] * 4


def test_checkpoints_are_whole_at_any_time(pool: kn.Pool) -> None:
    def work(config: int, trial: kn.LiveTrial) -> None:
        for size in range(200):
            trial.save([0.0] * size)

    sweep = pool.map(work, [0], name="torn", show=False)
    sizes = []
    while sweep.is_running:
        with contextlib.suppress(SweepError):  # it has saved nothing yet
            sizes.append(len(sweep.checkpoint(0)))
    assert sweep.wait().checkpoint(0) == [0.0] * 199
    assert sizes == sorted(sizes)
    (id,) = sqlite3.connect(".kalavai/journal.db").execute("SELECT id FROM sweeps WHERE name='torn'").fetchone()
    assert len(list(Path(".kalavai/files", str(id)).iterdir())) == 1, "the older ones are gone"


def test_what_is_deleted_while_it_runs_is_noticed(
    pool: kn.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = pool.map(lambda x: time.sleep(0.3) or x, range(6), name="deleted", show=False)
    sweep[0]
    kn.sweeps.journal.forget("deleted")
    assert sweep.values == list(range(6))
    assert "this sweep was deleted from it" in repr(sweep)
    sweep = pool.map(lambda x: time.sleep(0.3) or x, range(6), name="deleted", show=False)
    sweep[0]
    shutil.rmtree(".kalavai")
    assert sweep.values == list(range(6))
    assert "was deleted): results are in this notebook's memory alone" in repr(sweep)
    assert pool.map(abs, [-1], name="after it", show=False).values == [1]
    assert again("after it").values == [1]


def test_a_value_whose_file_is_gone_is_found_out_again(
    pool: kn.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert [len(v) for v in pool.map(lambda n: bytes(n), [100_000, 3], name="files", show=False).values] == [
            100_000,
            3,
        ]
        shutil.rmtree(".kalavai/files")


def test_large_values_are_files_and_small_ones_are_not(pool: kn.Pool, directory: Path) -> None:
    pool.map(lambda n: bytes(n), [100, 2_000_000, 500_000], name="sizes", show=False).wait()
    (id,) = (
        sqlite3.connect(directory / ".kalavai" / "journal.db")
        .execute("SELECT id FROM sweeps WHERE name='sizes'")
        .fetchone()
    )
    files = list((directory / ".kalavai" / "files" / str(id)).iterdir())
    assert len(files) == 2
    assert [len(trial.value) for trial in again("sizes").trials] == [100, 2_000_000, 500_000]
    pool.sweeps.forget("sizes")
    assert not any(file.exists() for file in files)
    with pytest.raises(KeyError, match=r"no sweep is called 'sizes'\. There are: "):
        pool.sweeps["sizes"]


def test_a_value_that_cannot_be_rebuilt_is_said_to_be_so(pool: kn.Pool, directory: Path) -> None:
    import sys
    import types

    module = types.ModuleType("vanishing")
    exec("class Point:\n    pass", vars(module))
    sys.modules["vanishing"] = module
    pool.map(lambda x: x, [1], name="vanished", show=False).wait()
    import json

    import cloudpickle

    content = cloudpickle.dumps(module.Point(), protocol=5)
    journal = sqlite3.connect(directory / ".kalavai" / "journal.db", isolation_level=None)
    journal.execute(
        "UPDATE trials SET value = ?, value_sizes = ? WHERE sweep = (SELECT id FROM sweeps WHERE name = 'vanished')",
        (content.replace(b"vanishing", b"vanished_"), json.dumps([len(content)])),
    )
    value = again("vanished")[0].value
    assert isinstance(value, Unreadable)
    assert "vanished_" in value.why


def test_sweeps_without_a_name_are_kept_too_but_not_for_ever(pool: kn.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalavai_nb.trials.journal.QUIET_SECONDS", 0.0)

    def passing(x: int) -> int:
        return x

    for number in range(UNNAMED_KEPT + 3):
        assert pool.map(passing, [number], show=False).values == [number]
    names = [name for name in Journal(Path.cwd() / ".kalavai").names() if name.startswith("passing-")]
    assert len(names) <= UNNAMED_KEPT
    assert again(names[-1])[0].value == UNNAMED_KEPT + 2


def test_what_never_began_is_not_on_the_shelf(pool: kn.Pool) -> None:
    names = list(kn.sweeps)
    with pytest.raises(SendError):
        pool.map(abs, [1, threading.Lock()], show=False)
    with pytest.raises(NotEnoughDevices):
        pool.map(abs, [1], gpus=9, name="nine", show=False)
    assert set(kn.sweeps) <= set(names)


def test_two_writers_at_once_do_no_harm(directory: Path) -> None:
    """As two notebooks: a journal each, in threads that write and read as fast as they can."""
    from kalavai_nb.trials.content import Content
    from kalavai_nb.trials.record import Outcome, Record
    from kalavai_nb.trials.trial_list import TrialList

    def write(name: str) -> None:
        journal = Journal(directory / "both")
        id, _ = journal.begin(name, "fn", (), ("min",), {})
        record = Record(journal, id, TrialList())
        for index in record.add(range(100)):
            value = Content((1,), bytes(64))
            record.finish({index: Outcome({"state": TrialState.COMPLETE, "seconds": 1.0}, value)})
            journal.names()

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "b", "c", "d", "e")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abcde":
        recorded = Journal(directory / "both").read(name)
        assert recorded
        assert [str(entry.trial.state) for entry in recorded.entries] == ["COMPLETE"] * 100


def test_a_directory_that_cannot_be_written_costs_the_journal_and_nothing_else(
    pool: kn.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".kalavai").write_text("a file is in the way")
    monkeypatch.chdir(tmp_path)
    assert pool.map(abs, [-1, -2], show=False).values == [1, 2]
    assert "no journal can be kept in" in capsys.readouterr().out


def test_a_journal_of_another_version_is_left_alone(
    pool: kn.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pool.map(abs, [-1], name="old", show=False).wait()
    old = sqlite3.connect(".kalavai/journal.db")
    old.execute("PRAGMA user_version = 99")
    monkeypatch.setattr(kn.sweeps, "_journals", {})
    assert pool.map(abs, [-2], show=False).values == [2]
    assert "is of another version of kalavai_nb; move it away" in capsys.readouterr().out
    assert old.execute("SELECT name FROM sweeps").fetchall() == [("old",)]


def test_a_full_disk_is_said_and_results_are_still_there(pool: kn.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = pool.map(lambda x: time.sleep(0.2) or x, range(8), name="full", show=False)
    sweep[0]

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Journal, "write", refuse)
    assert sweep.values == list(range(8))
    assert "the journal cannot be written (database or disk is full)" in repr(sweep)


def test_the_shelf_is_a_mapping_with_all_names(pool: kn.Pool) -> None:
    pool.map(abs, [1], name="on the shelf", show=False).wait()
    assert "on the shelf" in pool.sweeps
    assert "on the shelf" in Shelf()
    assert "on the shelf" in repr(kn.sweeps)
    assert len(kn.sweeps) == len(list(kn.sweeps))


def test_a_named_sweep_that_still_runs_goes_on_in_its_successor(
    pool: kn.Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(x: int) -> int:
        time.sleep(0.2)
        return x

    first = pool.map(work, range(10), name="twice", show=False)
    first[1]
    second = pool.map(work, range(10), name="twice", show=False)
    assert "'twice' was still running: it is stopped, and goes on here" in capsys.readouterr().out
    assert not first.is_running
    assert second.values == list(range(10))


def test_a_checkpoint_outlives_the_kernel(tmp_path: Path) -> None:
    cell = (
        "def train(config, trial):\n    import time\n    start = trial.load(0)\n"
        "    for step in range(start, 40):\n        time.sleep(0.1)\n        trial.save(step + 1)\n    return start\n"
        "sweep = pool.map(train, ['only'], name='long')"
    )
    opening = "import kalavai_nb as kn\npool = kn.Pool(devices=1, quiet=True)"
    with Notebook(cwd=str(tmp_path)) as first:
        first.ok(f"{opening}\n{cell}")
        first.ok("import time\nsaved = lambda: sweep._record.checkpoint(0)")
        first.ok("while saved() is None or saved().load() < 10: time.sleep(0.05)")
        first.kill()
    with Notebook(cwd=str(tmp_path)) as second:
        assert int(second.ok(f"{opening}\n{cell}\nprint(sweep.values[0])").stream()) >= 10
