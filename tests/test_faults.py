"""What breaks, on purpose: interrupts, dead ranks, dead workers, stuck collectives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from notebook import Notebook, listens_on

SLEEP = "import time\ntime.sleep(600)"
BUSY = "while True: pass"
STUBBORN = "import time\nwhile True:\n    try:\n        time.sleep(0.1)\n    except KeyboardInterrupt:\n        pass"
COLLECTIVE = """import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.recv(torch.ones(1), src=1 - rank)"""

# longer than the head's patience with a silent worker
GIL_SECONDS = 14 + 4


# these two wait long: they are begun before anything else, and looked at when the rest is done
@pytest.fixture(scope="module", autouse=True)
def holding() -> Iterator[tuple[Notebook, str]]:
    """A notebook with a cell that holds the GIL."""
    with Notebook() as notebook:
        notebook.ok("%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        notebook.ok("%%pool\nimport ctypes\nkept = 5")
        yield notebook, notebook.begin(f"%%pool\nctypes.PyDLL(None).sleep({GIL_SECONDS})\nprint(kept)")


@pytest.fixture(scope="module", autouse=True)
def interrupted() -> Iterator[tuple[Notebook, str, float]]:
    """A notebook with a cell that swallows its interrupt, and when that was."""
    with Notebook() as notebook:
        notebook.ok("%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        notebook.ok("%%pool gpus=2\nkept = 1")
        request = notebook.begin(f"%%pool gpus=2\nprint('begun', flush=True)\n{STUBBORN}")
        notebook.wait_for_text(request, "begun")
        pressed = time.time()
        notebook.interrupt()
        yield notebook, request, pressed


@pytest.fixture
def anew(shared: Notebook) -> Notebook:
    """A notebook whose pool is open, with new ranks."""
    shared.ok("%pool restart")
    return shared


@pytest.mark.parametrize(
    ("body", "limit_seconds"),
    [(SLEEP, 2), (BUSY, 2), (COLLECTIVE, 10)],
    ids=["sleep", "busy", "collective"],
)
def test_interrupt_ends_the_cell_and_the_next_is_clean(anew: Notebook, body: str, limit_seconds: float) -> None:
    notebook = anew
    notebook.ok("%%pool gpus=2\nkept = 1")
    request = notebook.begin(f"%%pool gpus=2\nprint('begun', flush=True)\n{body}")
    notebook.wait_for_text(request, "begun")
    if body is COLLECTIVE:
        time.sleep(1)  # the group forms; there is no event for "both wait for each other"
    pressed = time.monotonic()
    notebook.interrupt()
    cell = notebook.finish(request)
    # twice what the issue asks for: machines are shared, and tests/benchmarks/ has the figure
    assert time.monotonic() - pressed < 2 * limit_seconds
    assert cell.error.startswith("KeyboardInterrupt")
    after = notebook.ok("%%pool gpus=2\nprint('clean', rank)")
    assert "[0] clean 0\n[1] clean 1\n" in after.stream()
    if body is COLLECTIVE:
        assert "Lost with it: kept" in cell.traceback
    else:
        assert "[0-1] 1\n" in notebook.ok("%%pool gpus=2\nprint(kept)").stream()


# the rank stands still until SIGINT was sent to it, which its kernel ignores between cells
EARLY = """import os, signal, time
[pid] = pool.run(os.getpid, gpus=1)
os.kill(pid, signal.SIGSTOP)
run = pool.run("time.sleep(600)", gpus=1, async_=True)
run.cancel()
time.sleep(0.5)
os.kill(pid, signal.SIGCONT)
run.done.wait(60)
print(run.status, [pid] == pool.run(os.getpid, gpus=1))"""


def test_an_interrupt_that_comes_before_the_kernel_has_begun_stops_the_cell(anew: Notebook) -> None:
    anew.ok("%%pool gpus=1\nimport time")
    assert anew.ok(EARLY).stream().endswith("interrupted True\n")


def test_interrupt_while_waiting_for_devices(notebook: Notebook) -> None:
    notebook.ok("import kalavai_nb as kn\npool = kn.Pool(idle_seconds=600)\ninvite = pool.invite()")
    notebook.ok("%%pool\nx = 1")
    invite = notebook.ok("invite").displays[0]["text/plain"]
    with Notebook() as other:
        other.ok(f"%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool({invite})")
        request = other.begin("%%pool gpus=2\npass")
        waiting = other.wait_for_text(request, "waiting:")
        assert "1st in the queue; 0 of the 2 devices it needs are free" in waiting.text
        other.interrupt()
        assert other.finish(request).error.startswith("KeyboardInterrupt")
        assert not notebook.ok("pool.snapshot().queue").displays[0]["text/plain"].strip("()")
        # the first notebook lets go, and the second gets its turn
        notebook.ok("%pool restart")
        assert "[0-1] 2\n" in other.ok("%%pool gpus=2\nprint(world_size)").stream()


def test_a_killed_rank_fails_the_cell_and_is_replaced(anew: Notebook) -> None:
    anew.ok("%%pool gpus=2\nmodel = 1")
    started = time.monotonic()
    cell = anew.run(
        "%%pool gpus=2\nimport os, signal, time\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    )
    assert time.monotonic() - started < 12
    assert "RankDied" in cell.error
    assert "rank 1" in cell.error
    assert "SIGKILL" in cell.error
    assert "Lost with it: model" in cell.error
    assert "rank 0 had to be stopped" in cell.traceback
    after = anew.ok("%%pool gpus=2\nprint(rank, 'model' in globals())")
    assert "[0] 0 True\n[1] 1 False\n" in after.stream()


def test_a_crash_in_c_code_shows_its_last_words(anew: Notebook) -> None:
    cell = anew.run("%%pool gpus=2\nimport ctypes\nif rank == 0: ctypes.string_at(0)")
    assert "SIGSEGV" in cell.error
    assert "Segmentation fault" in cell.error


def test_os_exit_is_a_death_too(anew: Notebook) -> None:
    cell = anew.run("%%pool gpus=2\nimport os\nos._exit(3)")
    assert "exited with code 3" in cell.error
    anew.ok("%%pool gpus=2\npass")


def test_one_rank_raises_while_the_others_sit_in_a_collective(anew: Notebook) -> None:
    source = """%%pool gpus=2
import torch, torch.distributed as dist
dist.init_process_group("gloo")
if rank == 1:
    raise ValueError("no data on this rank")
dist.all_reduce(torch.ones(1))"""
    started = time.monotonic()
    cell = anew.run(source)
    assert time.monotonic() - started < 25
    assert cell.error == "ValueError: no data on this rank"
    assert "rank 1 (" in cell.traceback
    assert "----> 5" in cell.traceback
    anew.ok(
        "%%pool gpus=2\nimport torch.distributed as dist\n"
        "dist.init_process_group('gloo')\ndist.barrier()\ndist.destroy_process_group()"
    )


def test_the_same_error_on_all_ranks_is_shown_once(anew: Notebook) -> None:
    cell = anew.run("%%pool gpus=4\n\n{}['missing']")
    assert cell.error == "KeyError: 'missing'"
    assert cell.traceback.count("Traceback (most recent call last)") == 1
    assert "ranks 0-3" in cell.traceback
    assert "----> 3 {}['missing']" in cell.traceback
    assert "kalavai" not in cell.traceback


def test_an_exception_of_the_notebooks_own_type_can_be_caught(anew: Notebook) -> None:
    anew.ok("class Mine(Exception):\n    pass\ndef fail():\n    raise Mine('hello')")
    cell = anew.ok("try:\n    pool.run(fail, gpus=2)\nexcept Mine as error:\n    print('caught', error)")
    assert "caught hello" in cell.stream()


def test_on_error_wait_and_continue(anew: Notebook) -> None:
    body = "import time\nif rank == 0: raise ValueError('early')\ntime.sleep(1.5)\nprint('late')"
    assert "[1] late" in anew.run(f"%%pool gpus=2 on_error=wait\n{body}").stream()
    cell = anew.ok(f"%%pool gpus=2 on_error=continue\n{body}")
    assert "ValueError" in cell.stream()
    assert "[1] late" in cell.stream()


def test_timeout_stops_the_cell(anew: Notebook) -> None:
    cell = anew.run("%%pool gpus=2 timeout=1s\nimport time\ntime.sleep(600)")
    assert cell.error.startswith("CellTimeout")
    anew.ok("%%pool gpus=2\npass")


def test_a_lost_worker_fails_its_ranks_and_comes_back(notebook: Notebook) -> None:
    notebook.ok("import kalavai_nb as kn\npool = kn.Pool()")
    # the worker's process has the address that the snapshot shows
    address = notebook.ok("pool.devices[1].worker").displays[0]["text/plain"].strip("'")
    (pid,) = [process.pid for process in notebook.descendants() if listens_on(process, address)]
    request = notebook.begin("%%pool gpus=2\nprint('begun', flush=True)\nimport time\ntime.sleep(600)")
    notebook.wait_for_text(request, "begun")
    os.kill(pid, signal.SIGKILL)
    cell = notebook.finish(request)
    assert "lost with its worker" in cell.error
    assert "[3] 3" in notebook.ok("%%pool gpus=4\nprint(rank)").stream()


def test_a_rank_that_dies_while_idle_is_told_of(anew: Notebook) -> None:
    anew.ok("%%pool gpus=2\nimport os, signal, threading\nprecious = 1")
    anew.ok("%%pool ranks=1\nthreading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()")
    anew.ok("import time\ntime.sleep(1.5)")
    cell = anew.ok("%%pool gpus=2\nprint('precious' in globals())")
    assert "rank 1" in cell.stream()
    assert "was ended by SIGKILL while idle. Lost with it: os, precious" in cell.stream()
    assert "[0] True\n[1] False\n" in cell.stream()


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("%%pool gpuz=2\npass", "there is no option 'gpuz'. Did you mean 'gpus'?"),
        ("%%pool gpus=two\npass", "gpus=two cannot be meant: wanted a number of devices"),
        ("%%pool 4\npass", "'4' is no option: wanted key=value or --flag"),
        ("%%pool gpus=9\npass", "asked for 9 devices, but the pool has 4"),
        ("%%pool type=H100\npass", "wanted 1 device with type=H100, but the pool has none such"),
        ("%%pool gpus=2\ndef f(:\n    pass", "line 2"),
        (
            "import threading\nlock = threading.Lock()\n"
            "get_ipython().run_cell_magic('pool', 'gpus=2', 'x = 1\\nprint(lock)')",
            "`lock` (used in line 3 of the cell) cannot be sent",
        ),
        ("api_key = 'x'\nget_ipython().run_cell_magic('pool', 'gpus=2', 'print(api_key)')", "looks like a credential"),
        ("%%pool gpus=2 ranks=5\npass", "this gang has the ranks 0 to 1"),
        ("%%pool gpus=2 out=nothing\npass", "this rank has no name 'nothing'"),
        ("n = 5\nget_ipython().run_cell_magic('pool', 'gpus=2 scatter=n', 'pass')", "scatter=n cannot be split"),
        ("%pool dance", "%pool dance is not known"),
    ],
)
def test_bad_input_gets_a_sentence(shared: Notebook, source: str, wanted: str) -> None:
    cell = shared.run(source)
    assert cell.status == "error"
    said = cell.traceback + cell.stream("stderr")
    assert wanted in said
    assert "site-packages" not in said, "frames of libraries help nobody"
    assert "worker/rank.py" not in said, "nor do ours"


def test_holding_the_gil_loses_nothing(holding: tuple[Notebook, str]) -> None:
    notebook, request = holding
    assert "[0-3] 5\n" in notebook.finish(request).stream()
    assert "[0-3] 5\n" in notebook.ok("%%pool\nprint(kept)").stream()
    assert notebook.ok("len(pool.devices)").displays[0]["text/plain"] == "4"


def test_a_cell_that_swallows_its_interrupt_is_ended(interrupted: tuple[Notebook, str, float]) -> None:
    notebook, request, pressed = interrupted
    cell = notebook.finish(request)
    # twice what the issue asks for, as above
    assert cell.reply["header"]["date"].timestamp() - pressed < 2 * 20
    assert cell.error.startswith("KeyboardInterrupt")
    assert "Lost with it: kept" in cell.traceback
    assert "[0] clean 0\n[1] clean 1\n" in notebook.ok("%%pool gpus=2\nprint('clean', rank)").stream()
