"""pool.map: order kept, a process per trial, one bad trial alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

import kalavai_nb as kn
from kalavai_nb.errors import OptionError, SendError, SweepError, TrialError
from kalavai_nb.state import TrialState
from notebook import Notebook, listens_on


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kn.Pool]:
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("notebook"))  # where the journal goes
    with kn.Pool(quiet=True) as pool:
        yield pool
    os.chdir(before)


def test_values_come_in_the_order_of_the_configs(pool: kn.Pool) -> None:
    def slow_first(x: int) -> int:
        time.sleep(0.5 if x == 0 else 0)
        return x * x

    sweep = pool.map(slow_first, range(8), show=False)
    assert list(sweep) == [x * x for x in range(8)]
    assert len(sweep) == 8
    assert sweep[3].value == 9


def test_each_trial_has_a_process_and_a_log_of_its_own(pool: kn.Pool) -> None:
    def pid(x: int) -> int:
        print("trial", x)
        os.system(f"echo from a child {x}")
        return os.getpid()

    sweep = pool.map(pid, range(6), isolate=True, show=False)
    assert len(set(sweep.values)) == 6
    assert sweep[2].log == "trial 2\nfrom a child 2\n"
    assert sweep[2].seconds is not None


def test_one_bad_trial_leaves_the_others_alone(pool: kn.Pool) -> None:
    def pick(x: int) -> int:
        if x % 3 == 0:
            raise ValueError(f"{x} is bad")
        if x == 5:
            os._exit(9)
        return x

    sweep = pool.map(pick, range(7), show=False)
    with pytest.raises(SweepError) as caught:
        sweep.values  # noqa: B018
    assert "4 of 7 trials of pick have no value" in str(caught.value)
    assert "trial 0: ValueError: 0 is bad" in str(caught.value)
    assert "trial 5: TrialError: its process exited with code 9" in str(caught.value)
    assert [trial.value for trial in sweep.trials] == [None, 1, 2, None, 4, None, None]
    table = sweep.table()
    assert list(table["state"]) == ["FAILED", "COMPLETE", "COMPLETE", "FAILED", "COMPLETE", "FAILED", "FAILED"]
    assert isinstance(sweep.failed[0].error, ValueError)
    assert isinstance(sweep[5].error, TrialError)


def test_table_and_best_spread_dicts(pool: kn.Pool) -> None:
    def loss(config: dict[str, float]) -> dict[str, float]:
        return {"loss": (config["lr"] - 2) ** 2}

    sweep = pool.map(loss, [{"lr": lr} for lr in (0, 1, 2, 3)], metric="loss", show=False)
    sweep.wait()
    assert sweep.best.config == {"lr": 2}
    assert {"state", "lr", "loss", "seconds", "device", "attempts", "error"} <= set(sweep.table().columns)


def test_what_cannot_be_sent_is_said_at_once(pool: kn.Pool) -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(SendError, match=r"lambda cannot be sent to the pool: `lock` \(line \d+ .*_thread.lock"):
        pool.map(lambda x: lock, [1])
    with pytest.raises(SendError, match="config 1 cannot be sent"):
        pool.map(lambda x: x, [1, lock])


def test_an_unknown_option_is_refused_with_the_nearest(pool: kn.Pool) -> None:
    with pytest.raises(OptionError, match=r"pool\.map has no option 'gpu'\. Did you mean 'gpus'\? help\(pool\.map\)"):
        pool.map(abs, [1], gpu=1)  # type: ignore[arg-type]


def test_stop_keeps_what_is_done_and_resume_goes_on(pool: kn.Pool) -> None:
    def work(x: int) -> int:
        time.sleep(0.3)
        return x

    sweep = pool.map(work, range(12), show=False)
    assert sweep[1].value == 1
    sweep.stop()
    states = [trial.state for trial in sweep.trials]
    assert TrialState.STOPPED in states
    assert TrialState.COMPLETE in states
    assert all(state.is_finished() for state in states)
    with pytest.raises(SweepError, match="stopped"):
        sweep.values  # noqa: B018
    assert sweep.resume().values == list(range(12))


def test_a_large_result_comes_home_whole(pool: kn.Pool) -> None:
    import numpy as np

    def big(seed: int) -> object:
        return np.random.default_rng(seed).random(1_000_000)

    values = pool.map(big, [1, 2], show=False).values
    assert np.array_equal(values[1], np.random.default_rng(2).random(1_000_000))


def test_a_trial_whose_worker_is_killed_runs_again_elsewhere(notebook: Notebook) -> None:
    notebook.ok("import kalavai_nb as kn, os\npool = kn.Pool(quiet=True)\nlog = os.path.abspath('log')")
    notebook.ok(
        "def work(x):\n    import time\n    with open(log, 'a') as file:\n        file.write(f'{x} ')\n"
        "    time.sleep(1)\n    return x\n"
        "sweep = pool.map(work, range(8), show=False)\nsweep[0]"
    )
    address = notebook.ok("pool.devices[0].worker").displays[0]["text/plain"].strip("'")
    (pid,) = [process.pid for process in notebook.descendants() if listens_on(process, address)]
    os.kill(pid, signal.SIGKILL)
    assert notebook.ok("sweep.values").displays[0]["text/plain"] == str(list(range(8)))
    runs = notebook.ok("print(open(log).read())").stream().split()
    assert len(runs) <= 9, "a kill costs one trial at most"


def test_interrupt_while_waiting_stops_the_sweep_and_keeps_what_is_done(notebook: Notebook) -> None:
    notebook.ok(
        "import kalavai_nb as kn, time\npool = kn.Pool(quiet=True)\ndef work(x):\n    time.sleep(0.3)\n    return x"
    )
    request = notebook.begin("sweep = pool.map(work, range(200))\nsweep.values")
    notebook.wait_for_text(request, "8/200")
    notebook.interrupt()
    cell = notebook.finish(request)
    assert cell.error.startswith("KeyboardInterrupt")
    assert "the sweep was stopped; what is done is kept" in cell.traceback
    assert "threading.py" not in cell.traceback
    assert "complete" in notebook.ok("sweep").displays[0]["text/plain"]
    assert "stopped" in notebook.ok("sweep").displays[0]["text/plain"]
    notebook.ok("%%pool\nrank")


def test_the_display_is_live_and_of_fixed_height(notebook: Notebook) -> None:
    notebook.ok("import kalavai_nb as kn, time\npool = kn.Pool(quiet=True)")
    cell = notebook.ok("sweep = pool.map(lambda x: time.sleep(0.2) or 1 / (x % 5), range(40))\nsweep.wait()\nNone")
    assert len(cell.displays) == 1
    text = cell.displays[0]["text/plain"]
    assert "40/40: 32 complete, 8 failed" in text
    assert "8 × ZeroDivisionError: division by zero" in text
    pictures = [m["content"]["data"]["text/plain"] for _, m in cell.messages if "data" in m["content"]]
    assert len(pictures) > 5
    assert any("vm" in picture or "trial" in picture for picture in pictures)
    assert max(picture.count("\n") for picture in pictures) < 25
