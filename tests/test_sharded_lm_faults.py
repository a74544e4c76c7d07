"""Stages, workers and the head go in the middle of a generation; its tokens are those of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import ModelLost, PoolClosed
from kalavai_nb.frames import dial, hang_up, hello, receive
from kalavai_nb.lm.request import Request
from kalavai_nb.lm.ring import Ring
from kalavai_nb.lm.sharded_lm import ShardedLM
from lender import Lender
from notebook import Notebook, listens_on
from tiny_lm import tiny_lm

TOKENS = 150
# after a kill with a spare; generous, since the machine may be busy: benchmarks measure it
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(devices=3, quiet=True) as pool:
        yield pool


@pytest.fixture
def lm(pool: kn.Pool, tiny: Path) -> Iterator[ShardedLM]:
    with pool.load(tiny, gpus=2, max_len=8000, spares=1, show=False) as lm:
        wait_until(lambda: bool(lm.spares))
        yield lm


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def signal_at(request: Request, lm: ShardedLM, stage: int, token: int, number: int = signal.SIGKILL) -> float:
    """Send a signal to a stage when so many tokens have come; the seconds until that is mended."""
    made = 0
    for delta in request:
        made += len(delta.token_ids)
        if made >= token:
            break
    began = time.monotonic()
    os.kill(lm.stages[stage].pid, number)
    notes = len(lm.notes)
    wait_until(lambda: len(lm.notes) > notes or request.is_over)
    return time.monotonic() - began


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_is_killed_while_tokens_come(lm: ShardedLM, stage: int) -> None:
    expected = lm.generate("hello", max_new_tokens=TOKENS)
    request = lm.submit("hello", max_new_tokens=TOKENS)
    signal_at(request, lm, stage, 20)
    assert request.result().text == expected
    assert "was ended by SIGKILL; went on after" in lm.notes[0]
    # its device has a process again, as a spare
    wait_until(lambda: len(lm.spares) == 1)


def test_a_stage_that_takes_more_than_the_owner_of_its_device_lends(pool: kn.Pool, lm: ShardedLM) -> None:
    expected = lm.generate("hello", max_new_tokens=TOKENS)
    owner, device = Lender(pool), lm.stages[0].device.id
    request = lm.submit("hello", max_new_tokens=TOKENS)
    owner.order({device: {"memory_bytes": 1 << 20, "text": "next to nothing"}})
    wait_until(lambda: bool(lm.notes))
    owner.lend()
    assert request.result().text == expected
    assert "GB, over the 0.0 GB that the owner of" in lm.notes[0]


def test_a_stage_that_is_killed_with_many_under_way_and_seeds(lm: ShardedLM) -> None:
    prompts = [f"{n} " * (1 + n) for n in range(12)]
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 3}
    expected = lm.generate(prompts, **options)
    requests = [
        lm._request(lm.tokenizer(prompt)["input_ids"], lm._sampling(options).of_row(n))
        for n, prompt in enumerate(prompts)
    ]
    for request in requests:
        lm._rings.submit(request)
    signal_at(requests[0], lm, 1, 20)
    assert [request.result().text for request in requests] == expected


def test_a_stage_that_is_killed_before_the_first_token(lm: ShardedLM) -> None:
    prompt = "all the world " * 400
    expected = lm.generate(prompt, max_new_tokens=20)
    request = lm.submit(prompt, max_new_tokens=20)
    os.kill(lm.stages[1].pid, signal.SIGKILL)
    assert not request.made
    assert request.result().text == expected


def test_stages_that_are_killed_while_the_loss_of_one_is_mended(lm: ShardedLM) -> None:
    expected = lm.generate("hello", max_new_tokens=TOKENS)
    request = lm.submit("hello", max_new_tokens=TOKENS)
    ring = lm._rings.all[0]
    deltas = iter(request)
    for _ in range(20):
        next(deltas)
    os.kill(lm.stages[0].pid, signal.SIGKILL)
    wait_until(lambda: ring.state in ("mending", "loading"))
    for stage in lm.stages:
        try:
            os.kill(stage.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert request.result().text == expected


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_stands_still(lm: ShardedLM, stage: int) -> None:
    expected = lm.generate("hello", max_new_tokens=TOKENS)
    request = lm.submit("hello", max_new_tokens=TOKENS)
    signal_at(request, lm, stage, 20, signal.SIGSTOP)
    assert request.result().text == expected
    assert "did not answer" in lm.notes[0]


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_many_kills_over_one_generation(lm: ShardedLM, count: int) -> None:
    tokens = 60 * count + 100
    expected = lm.generate("hello", max_new_tokens=tokens, details=True).token_ids
    request = lm.submit("hello", max_new_tokens=tokens)
    choose, made, kills = random.Random(0), 0, 0
    for delta in request:
        made += len(delta.token_ids)
        if kills < count and made >= 60 * (kills + 1):
            kills += 1
            victims = psutil.Process(choose.choice(lm.stages).pid)
            victims.kill()
    assert kills == count
    assert request.made == expected


def test_a_frame_that_is_lost_on_the_way(lm: ShardedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are there and idle, and nothing moves: noticed, and replayed."""
    expected = lm.generate("hello", max_new_tokens=10)
    send = Ring._send_first
    monkeypatch.setattr(Ring, "_send_first", lambda ring, requests: None)
    request = lm.submit("hello", max_new_tokens=10)
    ring = lm._rings.all[0]
    wait_until(lambda: ring.load == 1)
    monkeypatch.setattr(Ring, "_send_first", send)
    assert request.result().text == expected
    assert "a connection broke" in lm.notes[0]


def worker_of(pool: kn.Pool, address: str) -> psutil.Process:
    below = psutil.Process(pool._opened.pid).children(recursive=True)
    return next(p for p in below if listens_on(p, address))


def test_a_worker_that_is_lost_leaves_fewer_devices(tiny: Path) -> None:
    """Without a spare, and with one device that holds it all: the layers are shared out anew."""
    with kn.Pool(devices=2, quiet=True) as pool, pool.load(tiny, gpus=2, spares=0, show=False) as lm:
        expected = lm.generate("hello", max_new_tokens=TOKENS)
        request = lm.submit("hello", max_new_tokens=TOKENS)
        deltas = iter(request)
        next(deltas)
        worker_of(pool, lm.stages[0].device.worker).kill()
        assert request.result().text == expected
        assert "went on after" in lm.notes[0]


# as many tokens as need the caches of two devices
def too_long_for_one(pool: kn.Pool) -> int:
    # 6 layers × 2 (keys and values) × 2 heads × 8 numbers × 4 bytes a token
    return int(pool.devices[0].memory_bytes * 1.2) // (6 * 2 * 2 * 8 * 4)


def test_a_device_that_comes_back_is_taken_in(tiny: Path) -> None:
    with (
        kn.Pool(devices=2, quiet=True) as pool,
        pool.load(tiny, max_len=too_long_for_one(pool), max_batch=1, spares=0, show=False) as lm,
    ):
        assert len(lm.stages) == 2
        expected = lm.generate("hello", max_new_tokens=TOKENS)
        request = lm.submit("hello", max_new_tokens=TOKENS)
        next(iter(request))
        # its machine starts it again
        worker_of(pool, lm.stages[1].device.worker).kill()
        assert request.result().text == expected
        assert len(lm.stages) == 2


def test_all_but_one_device_lost_is_an_error_that_keeps_what_there_is(tiny: Path) -> None:
    with kn.Pool(devices=2, quiet=True) as pool:
        long = too_long_for_one(pool)
        with pool.load(tiny, max_len=long, max_batch=1, spares=0, wait=3, show=False) as lm:
            request = lm.submit("hello", max_new_tokens=100_000)
            next(iter(request))
            worker = worker_of(pool, lm.stages[1].device.worker)
            stage = psutil.Process(lm.stages[1].pid)
            worker.suspend()
            stage.kill()
            began = time.monotonic()
            with pytest.raises(ModelLost, match="lost devices, and nothing took their place within 3 s") as lost:
                request.result()
            assert time.monotonic() - began < 15
            worker.kill()
            [partial] = lost.value.partial
            assert partial.token_ids == request.made
            assert partial.token_ids
            with pytest.raises(ModelLost):
                lm.generate("hello")


def test_the_end_of_the_pool_ends_what_is_under_way(tiny: Path) -> None:
    with kn.Pool(devices=1, quiet=True) as pool, pool.load(tiny, max_len=2_000_000, max_batch=1, show=False) as lm:
        request = lm.submit("hello", max_new_tokens=100_000)
        next(iter(request))
        worker_of(pool, pool.engine.address).kill()
        with pytest.raises(PoolClosed):
            request.result()


def test_stop_in_a_notebook_leaves_the_model_usable(notebook: Notebook, tiny: Path) -> None:
    notebook.ok("import kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)")
    load = notebook.ok(f"lm = pool.load({str(tiny)!r}, gpus=2, max_len=100_000)")
    assert "layers 0–" in load.text
    expected = notebook.ok("lm.generate('hello', max_new_tokens=20)").text
    request = notebook.begin("for piece in lm.stream('hello', max_new_tokens=90_000): print(piece, end='', flush=True)")
    notebook.wait_for_text(request, "")
    notebook.interrupt()
    assert "KeyboardInterrupt" in notebook.finish(request).error
    request = notebook.begin("print('begun', flush=True)\nlm.generate(['a', 'b'], max_new_tokens=90_000)")
    notebook.wait_for_text(request, "begun")
    notebook.interrupt()
    try:
        cell = notebook.finish(request, timeout=30)
    except TimeoutError:
        # Python itself loses one that comes while it finalises something, so people press it again
        notebook.interrupt()
        cell = notebook.finish(request, timeout=30)
    assert "KeyboardInterrupt" in cell.error
    assert "lm/request.py" not in cell.traceback
    assert notebook.ok("lm.generate('hello', max_new_tokens=20)").text == expected
    stages = notebook.ok("[stage.pid for stage in lm.stages]").displays[0]["text/plain"]
    processes = [psutil.Process(int(pid)) for pid in stages.strip("[]").split(",")]
    notebook.kill()
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_spare_goes_to_whoever_waits_for_a_device(pool: kn.Pool, lm: ShardedLM) -> None:
    """All three devices are held; a cell gets the spare's, and the model goes on."""
    expected = lm.generate("hello", max_new_tokens=20)
    pool.run("pass", gpus=1, wait="20s")
    assert lm.spares == []
    assert "gave the spare" in lm.notes[-1]
    assert lm.generate("hello", max_new_tokens=20) == expected
    pool.restart()


def test_a_load_that_fails_while_a_loss_is_mended_is_told_in_time(tiny: Path, tmp_path: Path) -> None:
    """The files have changed: no process can take the lost one's place."""
    path = tiny_lm(tmp_path / "changing")
    with (
        kn.Pool(devices=2, quiet=True) as pool,
        pool.load(path, gpus=2, spares=0, wait=2, max_len=20_000, show=False) as lm,
    ):
        request = lm.submit("hello", max_new_tokens=10_000)
        next(iter(request))
        [file] = path.glob("*.safetensors")
        file.write_bytes(b"")
        os.kill(lm.stages[1].pid, signal.SIGKILL)
        with pytest.raises(ModelLost):
            request.result()


def test_a_stranger_to_a_model_cannot_break_its_ring(pool: kn.Pool, lm: ShardedLM) -> None:
    """Another member of the pool, who has no key of the stages."""
    expected = lm.generate("hello", max_new_tokens=50)
    request = lm.submit("hello", max_new_tokens=50)
    member = lm._rings.all[0].members[0]
    context = pool.engine.identity.context(server=False)
    for role in ("ring", "news", "orders", "ping", "nobody"):
        connection = dial((member.post.host, member.post.port), context, hello(role, "guess", epoch=1), 5)
        with pytest.raises(ConnectionError):
            receive(connection)
        connection.close()
    assert request.result().text == expected
    assert lm.notes == []


def test_a_connection_of_the_owner_that_breaks_is_mended(lm: ShardedLM) -> None:
    expected = lm.generate("hello", max_new_tokens=TOKENS)
    request = lm.submit("hello", max_new_tokens=TOKENS)
    next(iter(request))
    old = lm.stages[0].pid
    hang_up(lm._rings.all[0]._formation.first._orders._connection)
    # it is noticed when something is said to it
    assert lm.generate("hello", max_new_tokens=TOKENS) == expected
    assert request.result().text == expected
    wait_until(lambda: not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE)


def test_a_stage_that_reads_nothing_does_not_hold_up_the_ring(lm: ShardedLM) -> None:
    os.kill(lm.stages[0].pid, signal.SIGSTOP)
    requests = [lm.submit([97] * 4000, max_new_tokens=1) for _ in range(300)]
    for request in requests[:3]:
        request.result()
    lm.cancel(requests)
    assert "did not answer" in lm.notes[0]
