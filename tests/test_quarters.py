"""What a worker that is killed leaves on the disk is taken away by the one that comes in its place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb.worker.quarters import Quarters
from notebook import listens_on


def directories(shared: Path) -> list[Path]:
    return [path for path in shared.glob("w-*") if path.is_dir()]


def leave(shared: Path) -> None:
    """A worker that writes something and is killed."""
    (Quarters(shared).directory / "large").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_used_stays_and_what_nobody_uses_goes(tmp_path: Path) -> None:
    here = Quarters(tmp_path)
    killed = multiprocessing.get_context("fork").Process(target=leave, args=(tmp_path,))
    killed.start()
    killed.join()
    assert len(directories(tmp_path)) == 2
    there = Quarters(tmp_path)
    assert set(directories(tmp_path)) == {here.directory, there.directory}
    here.close()
    assert directories(tmp_path) == [there.directory]
    there.close()
    assert [path.name for path in tmp_path.iterdir()] == ["quarters.lock"]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kn.Pool]:
    monkeypatch.chdir(tmp_path)
    with kn.Pool(devices=1, quiet=True) as pool:
        yield pool


def test_files_of_a_killed_workers_trials_and_ranks_are_gone_when_it_is_back(pool: kn.Pool, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def work(x: int, trial: kn.LiveTrial) -> int:
        import time

        (trial.dir / "large").write_bytes(bytes(1000))
        if not begun.exists():
            begun.touch()
            time.sleep(600)
        return x

    pool.run("pass", gpus=1)
    [store] = pool.engine.call([(pool.devices[0].worker, {"op": "kn_store"})])
    [before] = directories(Path(str(store)).parent)
    sweep = pool.map(work, [1], show=False)
    while not begun.exists():
        time.sleep(0.01)
    assert any(before.rglob("large"))
    assert any(before.glob("rank-*"))
    below = psutil.Process(pool._opened.pid).children(recursive=True)
    next(process for process in below if listens_on(process, pool.devices[0].worker)).kill()
    assert sweep.values == [1]
    # the one in its place takes away what it left, and may be doing so just now
    deadline = time.monotonic() + 20
    while before.exists() or len(directories(before.parent)) != 1:
        assert time.monotonic() < deadline, directories(before.parent)
        time.sleep(0.01)
