"""What happens to a sweep when things break: forty trials of 0.3 s on two devices, and what is left of them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import PoolClosed, SweepError, TrialError, TrialTimeout
from kalavai_nb.state import TrialState
from kalavai_nb.trials.results import Results
from notebook import Notebook, listens_on

SECONDS = 0.3
# where it is not the time that matters
BRIEF_SECONDS = 0.1


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kn.Pool]:
    """A pool for tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        with kn.Pool(devices=2, quiet=True) as pool:
            yield pool


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kn.Pool]:
    monkeypatch.chdir(tmp_path)
    with kn.Pool(devices=2, quiet=True) as pool:
        yield pool


def counting(path: Path, at_17: Callable[[], object] = lambda: None, seconds: float = SECONDS) -> Callable[[int], int]:
    """A trial function that notes each of its executions, and does something else as trial 17."""
    log = str(path / "executions")

    def work(x: int) -> int:
        import os
        import time

        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{x} {os.getppid()}\n".encode())
        os.close(file)
        if x == 17:
            at_17()
        time.sleep(seconds)
        return x * 10

    return work


def executions(path: Path) -> Counter[int]:
    return Counter(int(line.split()[0]) for line in (path / "executions").read_text().splitlines())


def workers(pool: kn.Pool) -> list[psutil.Process]:
    """The processes of the pool's workers, by device."""
    below = psutil.Process(pool._opened.pid).children(recursive=True)
    return [next(p for p in below if listens_on(p, device.worker)) for device in pool.devices]


def states(sweep: kn.Sweep) -> Counter[TrialState]:
    return Counter(trial.state for trial in sweep.trials)


def wait_for_complete(sweep: kn.Sweep, count: int) -> None:
    sweep._trials.wait_for(lambda: sweep._trials.counts[TrialState.COMPLETE] >= count)


def test_a_killed_worker_costs_one_execution_and_no_result(pool: kn.Pool, tmp_path: Path) -> None:
    sweep = pool.map(counting(tmp_path), range(40), show=False)
    wait_for_complete(sweep, 20)
    workers(pool)[0].kill()
    assert sweep.values == [x * 10 for x in range(40)]
    runs = executions(tmp_path)
    assert runs.total() <= 41
    assert set(runs) == set(range(40))
    assert max(trial.attempts for trial in sweep.trials) <= 2


def test_a_trial_that_raises_fails_alone_and_nothing_is_run_again(lasting: kn.Pool, tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    sweep = lasting.map(counting(tmp_path, fail, BRIEF_SECONDS), range(40), show=False).wait()
    assert states(sweep) == {TrialState.COMPLETE: 39, TrialState.FAILED: 1}
    assert executions(tmp_path).total() == 40
    assert isinstance(sweep[17].error, ValueError)
    assert "ValueError: no such thing" in sweep[17].log
    with pytest.raises(
        SweepError, match=r"1 of 40 trials of work have no value\.\ntrial 17: ValueError: no such thing"
    ):
        sweep.values  # noqa: B018


@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
def test_a_trial_that_ends_its_process_fails_alone_and_no_worker_is_lost(
    lasting: kn.Pool, tmp_path: Path, how: str
) -> None:
    def end() -> None:
        import ctypes
        import os
        import signal

        if how == "exit":
            os._exit(3)
        elif how == "segfault":
            ctypes.string_at(0)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    before = workers(lasting)
    sweep = lasting.map(counting(tmp_path, end, BRIEF_SECONDS), range(40), show=False).wait()
    assert states(sweep) == {TrialState.COMPLETE: 39, TrialState.FAILED: 1}
    assert executions(tmp_path).total() <= 42
    said = {"exit": "exited with code 3", "segfault": "SIGSEGV", "kill": "SIGKILL"}[how]
    assert isinstance(sweep[17].error, TrialError)
    assert said in str(sweep[17].error)
    assert workers(lasting) == before


def test_a_trial_that_hangs_is_ended_and_its_device_goes_on(lasting: kn.Pool, tmp_path: Path) -> None:
    def hang() -> None:
        import time

        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                continue

    sweep = lasting.map(counting(tmp_path, hang, BRIEF_SECONDS), range(40), timeout=1, show=False).wait()
    assert states(sweep) == {TrialState.COMPLETE: 39, TrialState.FAILED: 1}
    assert isinstance(sweep[17].error, TrialTimeout)
    assert executions(tmp_path).total() == 40
    on_it = [t for t in sweep.trials if t.device == sweep[17].device and (t.started or 0) > (sweep[17].started or 0)]
    freed = min(t.started or 0 for t in on_it) - (sweep[17].started or 0)
    assert freed < 1 + 3, "its device is used again soon after the timeout"


def test_stop_starts_no_more_and_resume_does_the_rest(lasting: kn.Pool, tmp_path: Path) -> None:
    sweep = lasting.map(counting(tmp_path), range(40), show=False)
    wait_for_complete(sweep, 10)
    sweep.stop()
    begun = executions(tmp_path).total()
    assert begun <= 14
    done = states(sweep)[TrialState.COMPLETE]
    assert 10 <= done <= 12
    assert states(sweep)[TrialState.STOPPED] == 40 - done
    assert sweep.resume().values == [x * 10 for x in range(40)]
    assert executions(tmp_path).total() <= begun + 40 - done


def test_stop_waits_for_trials_of_which_it_has_not_heard_that_they_began(
    lasting: kn.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Results, "_on_began", lambda *_: None)
    began, ended = str(tmp_path / "began"), str(tmp_path / "ended")

    def work(x: int) -> None:
        import os
        import time

        os.mkdir(began)
        try:
            time.sleep(60)
        finally:
            time.sleep(0.5)
            os.mkdir(ended)

    sweep = lasting.map(work, range(1), show=False)
    while not os.path.exists(began):
        time.sleep(0.01)
    sweep.stop()
    assert os.path.exists(ended)
    assert states(sweep) == {TrialState.STOPPED: 1}


def test_a_trial_that_waits_behind_another_is_stopped_without_having_run(lasting: kn.Pool, tmp_path: Path) -> None:
    sweep = lasting.map(counting(tmp_path, seconds=0.03), range(200), show=False)
    wait_for_complete(sweep, 20)
    # the last are not handed to devices yet, the first are
    chosen = [199, 150, *range(20, 40)]
    for index in chosen:
        sweep.stop(index)
        assert sweep.trials[index].state.is_finished()
    sweep.wait()
    ended = [index for index in chosen if sweep.trials[index].state is TrialState.STOPPED]
    assert {150, 199} < set(ended)
    assert states(sweep) == {TrialState.COMPLETE: 200 - len(ended), TrialState.STOPPED: len(ended)}


def test_interrupted_twice_the_sweep_ends_at_once(notebook: Notebook) -> None:
    notebook.ok("import kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)")
    notebook.ok(
        "def stubborn(x):\n    import time\n    while True:\n        try:\n            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n            print('no', flush=True)"
    )
    request = notebook.begin("sweep = pool.map(stubborn, range(4))\nsweep.wait()")
    notebook.wait_for_text(request, "2 running")
    notebook.interrupt()
    notebook.wait_for_text(request, "running")
    time.sleep(0.5)
    pressed = time.monotonic()
    notebook.interrupt()
    assert notebook.finish(request).error.startswith("KeyboardInterrupt")
    assert time.monotonic() - pressed < 4
    assert "4 stopped" in notebook.ok("sweep").text


CELL = """
def work(x):
    import os, time
    file = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{{x}} 0\\n".encode())
    os.close(file)
    time.sleep(0.3)
    return x * 10
sweep = pool.map(work, range(40), name="fits")
"""


def test_a_killed_kernel_loses_what_ran_and_nothing_else(tmp_path: Path) -> None:
    cell = CELL.format(log=str(tmp_path / "executions"))
    opening = "import kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)"
    with Notebook(cwd=str(tmp_path)) as first:
        first.ok(opening)
        first.begin(f"{cell}\nsweep.wait()")
        while not (tmp_path / "executions").exists() or executions(tmp_path).total() < 23:
            time.sleep(0.05)
        first.kill()
    before = executions(tmp_path).total()
    with Notebook(cwd=str(tmp_path)) as second:
        second.ok(opening)
        kept = int(second.ok("print(len([t for t in kn.sweeps['fits'].trials if t.value is not None]))").stream())
        assert kept >= 20
        assert before - kept <= 2, "only those that ran are lost"
        count = "sum(t.value is not None for t in sweep.trials)"
        again = second.ok(f"{cell}\nprint({count}, sweep.values == [x * 10 for x in range(40)])")
        assert f"{kept} of 40 trials were done before" in again.stream()
        assert f"{kept} True" in again.stream() or f"{kept + 1} True" in again.stream()
    assert executions(tmp_path).total() == before + 40 - kept


def test_a_killed_head_is_said_and_another_pool_does_the_rest(pool: kn.Pool, tmp_path: Path) -> None:
    sweep = pool.map(counting(tmp_path), range(40), name="fits", show=False)
    wait_for_complete(sweep, 20)
    head = next(
        p for p in psutil.Process(pool._opened.pid).children(recursive=True) if listens_on(p, pool.engine.address)
    )
    head.kill()
    killed = time.monotonic()
    with pytest.raises(SweepError) as caught:
        sweep.values  # noqa: B018
    assert time.monotonic() - killed < 15
    kept = states(sweep)[TrialState.COMPLETE]
    assert kept >= 20
    assert f"{kept} of 40 trials have ended and are kept" in str(caught.value)
    assert "sweep.resume(pool)" in str(caught.value)
    with pytest.raises(PoolClosed, match="pool of this sweep is gone"):
        sweep.resume()
    with kn.Pool(devices=2, quiet=True) as other:
        assert sweep.resume(other).values == [x * 10 for x in range(40)]
    assert executions(tmp_path).total() <= 42


def test_a_worker_that_joins_half_way_takes_its_share_at_once(pool: kn.Pool, tmp_path: Path) -> None:
    victim = workers(pool)[1]
    os.kill(victim.pid, signal.SIGSTOP)
    os.kill(victim.pid, signal.SIGKILL)
    while len(pool.devices) > 1:
        time.sleep(0.01)
    sweep = pool.map(counting(tmp_path), range(20), show=False)
    sweep.wait()
    used = Counter(trial.device for trial in sweep.trials)
    assert len(used) == 2
    assert min(used.values()) >= 5
