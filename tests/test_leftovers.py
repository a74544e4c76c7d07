"""What cells sent and handed out lies on machines no longer than somebody wants it."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb import session, values
from kalavai_nb.blobs import interactive_namespace
from kalavai_nb.engine import Engine
from kalavai_nb.errors import KalavaiError, RankDied, RemoteError
from notebook import listens_on

MB = 1_000_000


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kn.Pool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        # functions below go along as those of a notebook do
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with kn.Pool(devices=2, quiet=True) as pool:
            yield pool
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def large(n: int) -> np.ndarray:
    return np.full(n * MB, 7, dtype=np.uint8)


def contents_mb(pool: kn.Pool) -> list[int]:
    """The sizes of what the machine keeps, largest first; what is small does not count."""
    [store] = pool.engine.call([(pool.devices[0].worker, {"op": "kn_store"})])
    sizes = [path.stat().st_size // MB for path in Path(str(store)).iterdir() if path.is_file()]
    return sorted((size for size in sizes if size), reverse=True)


def wait_for(pool: kn.Pool, sizes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while contents_mb(pool) != sizes:
        assert time.monotonic() < deadline, f"wanted {sizes} MB to be kept, there are {contents_mb(pool)}"
        time.sleep(0.01)


def test_values_that_came_home_are_kept_nowhere_else(pool: kn.Pool) -> None:
    for size in (3, 1, 0):
        found = pool.run(large, size, gpus=2)
        assert [value.sum() for value in found] == [7 * size * MB] * 2
    wait_for(pool, [])
    assert pool.runs[-1].result() is found, "what is small can be had again"
    with pytest.raises(KalavaiError, match=r"values of cell \d+ \(6\.\d MB\) were handed over .*--async"):
        pool.runs[-3].result()
    assert not pool.runs[-1].report(0).get("out")


def test_what_was_sent_goes_with_the_notebook_that_sent_it(pool: kn.Pool) -> None:
    pool.restart()  # else the other one waits until our idle ranks are taken back
    with kn.Pool(pool.invite(), quiet=True) as other:
        other.run(len, large(3), gpus=1)
        wait_for(pool, [3])
    wait_for(pool, [])


def test_what_was_made_for_a_notebook_goes_with_it(pool: kn.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "HOME_BYTES", 2 * MB)

    def bring(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Engine, "bring", bring)

    def work(size: int, trial: kn.LiveTrial) -> None:
        trial.save(large(size))

    pool.restart()
    with kn.Pool(pool.invite(), quiet=True) as other:
        handle = other.run(large, 3, gpus=1)
        other.map(work, [4], show=False).wait()
        wait_for(pool, [4, 3])
    wait_for(pool, [])
    del handle


def test_a_value_that_stays_there_goes_with_its_handle(pool: kn.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "HOME_BYTES", 2 * MB)
    handles = pool.run(large, 3, gpus=2)
    wait_for(pool, [3, 3])
    assert [handle.get().sum() for handle in handles] == [21 * MB] * 2
    wait_for(pool, [3, 3])
    del handles
    gc.collect()
    wait_for(pool, [])


def test_what_was_sent_goes_with_the_ranks_and_parts_when_others_take_their_place(pool: kn.Pool) -> None:
    namespace = interactive_namespace()
    try:
        namespace["array"], namespace["parts"] = large(5), large(4)
        pool.run("assert array.sum() == 35_000_000 and len(parts) == 2_000_000", gpus=2, scatter=["parts"])
        # the two parts are equal, and so is their content
        wait_for(pool, [5, 2])
        pool.run("assert len(parts) == 2_000_000", gpus=2, scatter=["parts"])
        namespace["parts"] = large(6)
        pool.run("assert len(parts) == 3_000_000", gpus=2, scatter=["parts"])
        wait_for(pool, [5, 3])
        pool.restart()
        wait_for(pool, [])
        pool.run("assert array.sum() == 35_000_000", gpus=1)
        wait_for(pool, [5])
    finally:
        namespace.pop("array", None)
        namespace.pop("parts", None)


def test_small_contents_that_are_out_of_date_are_forgotten_many_at_a_time(
    pool: kn.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OUTDATED_KEPT", 4)
    [store] = pool.engine.call([(pool.devices[0].worker, {"op": "kn_store"})])
    namespace = interactive_namespace()
    try:
        for number in [*range(12), *range(12)]:
            namespace["number"] = number
            pool.run(f"assert number == {number}", gpus=1)
            contents = [path for path in Path(str(store)).iterdir() if path.name.isalnum()]
            assert 1 <= len(contents) <= 8
    finally:
        namespace.pop("number", None)
        pool.restart()


def test_ranks_that_ended_leave_no_threads_or_sockets_in_their_worker(pool: kn.Pool) -> None:
    below = psutil.Process(pool._opened.pid).children(recursive=True)
    address = pool.devices[0].worker
    worker = next(process for process in below if listens_on(process, address))

    def held() -> tuple[int, int]:
        return worker.num_threads(), worker.num_fds()

    def come_and_go(times: int) -> None:
        for _ in range(times):
            pool.run("pass", gpus=1)
            pool.restart()
            with pytest.raises(RankDied):
                pool.run("import os\nos._exit(3)", gpus=1)
            # and one that is ended while it starts: its worker does not wait for it
            start = {"op": "kn_start", "owner": pool.owner, "lease": "brief", "selectors": [""]}
            with ThreadPoolExecutor(1) as thread:
                starting = thread.submit(pool.engine.call, [(address, start)])
                while not starting.done():
                    pool.engine.call([(address, {"op": "kn_end_ranks", "lease": "brief"})])
                assert "a rank did not start: it was ended by SIGKILL" in starting.result()[0]["gone"]

    # soon there are as many threads as its executor may have
    come_and_go(6)
    threads, descriptors = held()
    come_and_go(6)
    assert held()[0] <= threads
    assert held()[1] <= descriptors + 2
    [store] = pool.engine.call([(address, {"op": "kn_store"})])
    assert not list(Path(str(store)).parent.rglob("rank-*"))


def test_a_cell_whose_values_cannot_be_read_ends_and_says_so(pool: kn.Pool) -> None:
    full = "from kalavai_nb.blobs import BlobStore\nBlobStore.keep = lambda *_: None\nvalue = 1"
    with pytest.raises(RemoteError, match=r"what it hands out could not be read on its machine: .*No such file"):
        pool.run(full, gpus=1, out="value")
    pool.run("assert value == 1", gpus=1)
    pool.restart()
