"""The extension of Jupyter Server: who is there, what is sent, who may ask; with a real server, files and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from kalavai_nb.registry import Entry
from kalavai_nb.registry import entry as entries
from kalavai_nb.server.ordering import Ordering
from kalavai_nb.server.patch import apply, diff
from kalavai_nb.server.pools import Pools, State, summary_of
from kalavai_nb.server.processes import is_alive, is_here
from kalavai_nb.server.watching import Listener, Watching

REPOSITORY = Path(__file__).parent.parent
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "snapshot.json").read_bytes())
POOL, ADA, BOB = GOLDEN["id"], "Client-ada", "Client-bob"
PATIENCE_SECONDS = 60.0
ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere-0a1b2c3d4e5f"}

log = logging.getLogger("test_server")


def at(moment: float, **changes: Any) -> dict[str, Any]:
    """A snapshot that was taken then."""
    return {**GOLDEN, "time": moment, **changes}


def devices(count: int, moment: float) -> dict[str, Any]:
    """A pool of so many GPUs at work; readings change each second, histories each ten."""
    machines = {f"m{number}": {"host": f"box-{number}", "cores": 64} for number in range(-(-count // 8))}
    many = {}
    for number in range(count):
        base = GOLDEN["devices"]["GPU-11111111-2222"]
        tens = int(moment) // 10
        history = {key: [(tens + step + number) % 101 for step in range(60)] for key in ("utilisation", "memory")}
        reading = {
            **base["reading"],
            "utilisation": (number * 7 + int(moment) * 13) % 100 / 100,
            "memory_used_bytes": 12884901888 + number * 4096 + int(moment) * 65536,
            "temperature_celsius": 40.0 + (number + int(moment)) % 40,
            "power_watts": 200.5 + (number * 3 + int(moment)) % 90,
        }
        device = {**base, "machine": f"m{number // 8}", "index": number % 8, "reading": reading, "history": history}
        many[f"GPU-{number:08}-1111-2222-3333"] = device
    return at(moment, machines=machines, devices=many)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kalavai_nb"


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def links(state: State) -> dict[str, dict[str, str]]:
    return {id: {owner: each["link"] for owner, each in pool["owners"].items()} for id, pool in state["pools"].items()}


def another(place: Path) -> tuple[subprocess.Popen[str], str]:
    """A process with an entry of its own, and the name of that."""
    code = (
        "import json, sys, pathlib, kalavai_nb.registry as registry\n"
        "entry = registry.Entry('p', 'o', 'gone.ipynb', True, pathlib.Path(sys.argv[1]))\n"
        "entry.write(json.loads(pathlib.Path(sys.argv[2]).read_text()))\n"
        "print(entry.name, flush=True)\n"
        "sys.stdin.read()\n"
    )
    golden = REPOSITORY / "tests" / "golden" / "snapshot.json"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place), str(golden)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# patches

RFC_7386 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), RFC_7386)
def test_patches_are_applied_as_the_standard_says(target: Any, patch: Any, result: Any) -> None:
    before = json.dumps(target)
    assert apply(target, patch) == result
    assert json.dumps(target) == before


VALUES = st.recursive(
    st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, 0.5]) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def as_browsers_see(value: Any) -> str:
    """JSON in which 1 and 1.0 are one number, and true another thing."""
    return json.dumps(_numbers_as_floats(value), sort_keys=True)


def _numbers_as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_as_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers_as_floats(each) for each in value]
    return float(value) if type(value) is int else value


@given(OBJECTS, OBJECTS)
def test_what_is_different_makes_the_one_of_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = json.loads(json.dumps(diff(old, new)))
    assert as_browsers_see(apply(old, patch)) == as_browsers_see(new)
    assert diff(new, json.loads(json.dumps(new))) == {}


def test_only_what_changed_is_in_a_patch() -> None:
    old = {"version": 1, "pools": {"p": {"snapshot": devices(20, 100.0)}}}
    new = json.loads(json.dumps(old))
    device = new["pools"]["p"]["snapshot"]["devices"]["GPU-00000003-1111-2222-3333"]
    device["reading"]["utilisation"] = 0.123
    del device["reading"]["power_watts"]
    change = {"reading": {"utilisation": 0.123, "power_watts": None}}
    assert diff(old, new) == {"pools": {"p": {"snapshot": {"devices": {"GPU-00000003-1111-2222-3333": change}}}}}


# who is there


def test_whoever_stops_writing_is_silent_and_heals(place: Path) -> None:
    clock, said = Clock(), list[str]()
    pools = Pools(said.append, place, clock)
    entry = Entry(POOL, ADA, "ada.ipynb", True, place)
    entry.write(at(1.0))
    pools.look()
    for seconds, link in ((3.9, "live"), (4.0, "silent"), (12.7, "silent")):
        clock.now = 1000 + seconds
        state = pools.look()
        assert links(state) == {POOL: {ADA: link}}
    owner = state["pools"][POOL]["owners"][ADA]
    assert owner["silent_seconds"] == 12
    entry.write(at(2.0))
    state = pools.look()
    assert links(state) == {POOL: {ADA: "live"}}
    assert "silent_seconds" not in state["pools"][POOL]["owners"][ADA]
    assert state["pools"][POOL]["snapshot"]["time"] == 2.0
    assert not said


def test_how_long_a_file_has_been_silent_is_known_at_the_first_look(place: Path) -> None:
    entry = Entry(POOL, ADA, "ada.ipynb", True, place)
    entry.write(at(1.0))
    file = place / f"{entry.name}.json"
    written = time.time() - 4.5
    os.utime(file, (written, written))
    pools = Pools(pytest.fail, place)
    owner = pools.look()["pools"][POOL]["owners"][ADA]
    assert (owner["link"], owner["silent_seconds"]) == ("silent", 4)


def test_whoever_has_ended_is_shown_for_a_while_and_then_taken_away(place: Path) -> None:
    clock = Clock()
    pools = Pools(pytest.fail, place, clock)
    ours = Entry("mine", ADA, "ada.ipynb", True, place)
    process, name = another(place)
    try:
        ours.write(at(1.0, id="mine"))
        pools.look()
        process.kill()
        # not waited for, it is still there in the table of processes, as it is while its server has not noticed
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        clock.now += 2
        ours.write(at(2.0, id="mine"))
        assert links(pools.look()) == {"mine": {ADA: "live"}, POOL: {"o": "ended"}}
        assert summary_of(pools.look())["pools"] == 1
    finally:
        end(process)
    (place / f".{name}.json.0123").touch()
    clock.now += 14.9
    ours.write(at(3.0, id="mine"))
    assert POOL in pools.look()["pools"]
    clock.now += 0.1
    assert pools.look()["pools"].keys() == {"mine"}
    assert {each.name for each in place.iterdir()} == {f"{ours.name}.json", f"{ours.name}.inbox"}


def test_a_process_is_not_asked_for_while_its_file_changes(place: Path) -> None:
    """It may be one of another container with the same name, of which we see no processes."""
    clock = Clock()
    pools = Pools(pytest.fail, place, clock)
    process, name = another(place)
    file = place / f"{name}.json"
    end(process)
    content = json.loads(file.read_bytes())
    for sequence in range(2, 40):
        file.write_text(json.dumps({**content, "sequence": sequence}))
        clock.now += 1
        assert links(pools.look()) == {POOL: {"o": "live"}}
    assert file.exists()


def test_of_other_machines_only_the_file_counts(place: Path) -> None:
    clock = Clock()
    pools = Pools(pytest.fail, place, clock)
    process, name = another(place)
    end(process)
    file = place / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **ELSEWHERE}))
    long_ago = time.time() - 9999
    os.utime(file, (long_ago, long_ago))
    assert links(pools.look()) == {POOL: {"o": "live"}}
    clock.now += 500
    state = pools.look()
    assert links(state) == {POOL: {"o": "silent"}}
    assert state["pools"][POOL]["owners"]["o"]["silent_seconds"] == 500
    assert file.exists()


def test_processes() -> None:
    now = time.time()
    assert is_alive(os.getpid(), now)
    # somebody wrote before this process began: its number was another's then
    assert not is_alive(os.getpid(), now - 1e6)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_alive(child.pid, now)
    assert not is_here(ELSEWHERE["machine"], socket.gethostname())
    assert not is_here("odd", socket.gethostname())


# pools of several owners


def test_two_owners_of_a_pool_are_one_pool_with_its_freshest_snapshot(place: Path) -> None:
    clock = Clock()
    pools = Pools(pytest.fail, place, clock)
    ada, bob = (Entry(POOL, owner, f"{owner}.ipynb", owner == ADA, place) for owner in (ADA, BOB))
    ada.write(at(5.0))
    bob.write(at(7.0))
    state = pools.look()
    assert links(state) == {POOL: {ADA: "live", BOB: "live"}}
    assert state["pools"][POOL]["snapshot"]["time"] == 7.0
    assert [each["can_invite"] for _, each in sorted(state["pools"][POOL]["owners"].items())] == [True, False]
    # who is silent counts less than who is there; who has lost the head, too
    clock.now += 5
    ada.write(at(6.0))
    state = pools.look()
    assert (links(state)[POOL][BOB], state["pools"][POOL]["snapshot"]["time"]) == ("silent", 6.0)
    bob.write(at(7.0), "lost", "the head of the pool does not answer any more.")
    state = pools.look()
    assert (links(state)[POOL][BOB], state["pools"][POOL]["snapshot"]["time"]) == ("lost", 6.0)
    assert state["pools"][POOL]["owners"][BOB]["reason"] == "the head of the pool does not answer any more."
    # where nobody has news, the last there was is shown
    ada.write(at(6.0), "lost", "gone")
    assert pools.look()["pools"][POOL]["snapshot"]["time"] == 7.0


def test_of_two_that_claim_to_be_one_owner_the_living_is_asked(place: Path) -> None:
    clock = Clock()
    pools = Pools(pytest.fail, place, clock)
    liar, honest = (Entry(POOL, ADA, label, True, place) for label in ("liar", "honest"))
    liar.write(at(1e12))
    honest.write(at(1.0))
    pools.look()
    clock.now += 4
    honest.write(at(2.0))
    state = pools.look()
    assert state["pools"][POOL]["owners"][ADA]["label"] == "honest"
    assert state["pools"][POOL]["snapshot"]["time"] == 2.0
    found = pools.owner(POOL, ADA)
    assert found
    assert found.entry == honest.name
    assert pools.owner(POOL, "nobody") is None


def test_the_summary_counts_each_device_once(place: Path) -> None:
    pools = Pools(pytest.fail, place)
    for number, pool in enumerate(("one", "two")):
        Entry(pool, f"o{number}", "x", True, place).write(at(1.0, id=pool))
    # MIG has no utilisation, and the CPU is silent, and no GPU
    assert summary_of(pools.look()) == {"pools": 2, "devices": 3, "gpus": 2, "utilisation": 0.71, "alerts": 2}
    assert summary_of({"version": 1, "pools": {}}) == {"pools": 0, "devices": 0, "gpus": 0, "alerts": 0}


# who listens


class Browser:
    """What a listener is told."""

    def __init__(self, watching: Watching) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = self.hung_up = False
        self.listener = Listener(self._write, self._hang_up)
        self.state: Any = None
        self._watching = watching
        watching.join(self.listener)

    async def next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self.messages.get(), PATIENCE_SECONDS)
        if message["kind"] == "state":
            self.state = message["state"]
        elif message["kind"] == "patch":
            self.state = apply(self.state, message["patch"])
        return message

    async def until(self, moment: float) -> list[str]:
        """Kinds of the messages up to the state of this moment."""
        kinds = [(await self.next())["kind"]]
        while moment not in [pool["snapshot"]["time"] for pool in self.state["pools"].values()]:
            kinds.append((await self.next())["kind"])
        return kinds

    async def _write(self, text: str) -> None:
        await self.takes.wait()
        if self.gone:
            raise ConnectionResetError
        self.messages.put_nowait(json.loads(text))

    def _hang_up(self) -> None:
        self.hung_up = True
        self._watching.leave(self.listener)


def in_loop(place: Path, test: Callable[[Watching], Awaitable[None]], **timings: float) -> None:
    async def run() -> None:
        pools = Pools(pytest.fail, place)
        watching = Watching(pools, log, **{"look_seconds": 0.01, "tick_seconds": 60.0, **timings})
        await test(watching)

    asyncio.run(run())


def test_nothing_is_read_while_nobody_looks(place: Path) -> None:
    async def test(watching: Watching) -> None:
        entry, reader = Entry(POOL, ADA, "ada.ipynb", True, place), watching.pools.reader
        entry.write(at(1.0))
        await asyncio.sleep(0.05)
        assert reader.files_read == 0
        browsers = [Browser(watching) for _ in range(5)]
        for browser in browsers:
            await browser.until(1.0)
        # one reader for all of them
        assert reader.files_read == 1
        for browser in browsers:
            watching.leave(browser.listener)
        task = watching._task
        assert task
        await asyncio.wait_for(task, PATIENCE_SECONDS)
        entry.write(at(2.0))
        await asyncio.sleep(0.05)
        assert reader.files_read == 1
        # and what is asked for is read when it is asked for, but not twice in half a second
        for _ in range(3):
            await watching.state()
        assert reader.files_read <= 2
        assert (await watching.state(0))["pools"][POOL]["snapshot"]["time"] == 2.0

    in_loop(place, test)


def test_patches_lead_to_the_state(place: Path) -> None:
    async def test(watching: Watching) -> None:
        entry = Entry(POOL, ADA, "ada.ipynb", True, place)
        first = Browser(watching)
        await first.next()
        assert first.state == {"version": 1, "pools": {}}
        entry.write(at(1.0))
        assert await first.until(1.0) == ["patch"]
        second = Browser(watching)
        assert await second.until(1.0) == ["state"]
        for step in range(2, 8):
            # somebody who asks by REST meanwhile takes nothing away from those who listen
            entry.write(devices(step, float(step)))
            await watching.state(0)
            for browser in (first, second):
                assert await browser.until(float(step)) == ["patch"]
                assert browser.state == await watching.state()
        entry.remove()
        await first.next()
        assert first.state == {"version": 1, "pools": {}}

    in_loop(place, test)


def test_where_nothing_changes_there_are_only_ticks(place: Path) -> None:
    async def test(watching: Watching) -> None:
        Entry(POOL, ADA, "ada.ipynb", True, place).write(at(1.0))
        browser = Browser(watching)
        await browser.until(1.0)
        began = time.monotonic()
        assert [await browser.next() for _ in range(3)] == [{"kind": "tick"}] * 3
        assert time.monotonic() - began >= 0.55

    in_loop(place, test, tick_seconds=0.2)


def test_whoever_is_slow_gets_the_whole_state_when_it_is_back(place: Path) -> None:
    async def test(watching: Watching) -> None:
        entry = Entry(POOL, ADA, "ada.ipynb", True, place)
        slow, quick = Browser(watching), Browser(watching)
        await slow.next()
        slow.takes.clear()
        for step in range(1, 20):
            entry.write(at(float(step)))
            await quick.until(float(step))
        slow.takes.set()
        # one message was on its way, and the next one has all of it
        assert (await slow.next())["kind"] == "patch"
        assert await slow.until(19.0) == ["state"]
        assert slow.state == quick.state
        entry.write(at(20.0))
        assert await slow.until(20.0) == ["patch"]

    in_loop(place, test)


def test_whoever_is_gone_is_forgotten(place: Path) -> None:
    async def test(watching: Watching) -> None:
        entry = Entry(POOL, ADA, "ada.ipynb", True, place)
        gone, stays = Browser(watching), Browser(watching)
        await gone.next()
        await stays.next()
        gone.gone = True
        entry.write(at(1.0))
        await stays.until(1.0)
        await asyncio.sleep(0)
        assert gone.hung_up
        assert not stays.hung_up
        assert gone.listener not in watching._listeners

    in_loop(place, test)


def test_an_error_of_ours_hangs_up_and_is_said_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watching: Watching) -> None:
        browser = Browser(watching)
        await browser.next()
        watching.pools.look = lambda: 1 / 0  # type: ignore[assignment, return-value]
        task = watching._task
        assert task
        await asyncio.wait_for(task, PATIENCE_SECONDS)
        assert browser.hung_up
        del watching.pools.look
        await Browser(watching).next()

    in_loop(place, test)
    assert [record.message for record in caplog.records] == ["the pools of kalavai_nb cannot be watched"]


@pytest.mark.parametrize("count", [5, 200])
def test_what_it_costs(place: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty seconds of a pool at work, without waiting for them."""
    entry, pools = Entry(POOL, ADA, "ada.ipynb", True, place), Pools(pytest.fail, place)
    moments = [1000.0 + second for second in range(21)]
    entry.write(devices(count, moments[0]))
    before = pools.look()
    patched, sizes, seconds = before, [], 0.0
    for moment in moments[1:]:
        entry.write(devices(count, moment))
        began = time.process_time()
        state = pools.look()
        patch = json.dumps(diff(before, state), separators=(",", ":"))
        seconds += time.process_time() - began
        sizes.append(len(patch))
        before, patched = state, apply(patched, json.loads(patch))
    assert patched == before
    idle = time.process_time()
    for _ in range(20):
        assert not diff(before, pools.look())
    idle = time.process_time() - idle
    whole = len(json.dumps(before, separators=(",", ":")))
    with capsys.disabled():
        print(
            f"\n{count} devices: {sum(sizes) / 20:.0f} bytes a second (at most {max(sizes)}; the whole state {whole}), "
            f"{seconds / 20 * 1000:.2f} ms a change, {idle / 20 * 1000:.2f} ms a look at nothing new"
        )
    assert sum(sizes) / 20 < 250 * count + 1000
    assert max(sizes) < 700 * count + 1000


# orders


class Notebook:
    """An owner that writes and answers, as the watch of a pool does."""

    def __init__(self, place: Path, owner: str = ADA, *, answers: bool = True, can_invite: bool = True) -> None:
        self.entry = Entry(POOL, owner, "ada.ipynb (812)", can_invite, place)
        self.done: list[tuple[str, str]] = []
        self.answers, self._unanswered = answers, list[entries.Order]()
        self._closing = threading.Event()
        self.entry.write(at(1.0))
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _live(self) -> None:
        while not self._closing.wait(0.02):
            for order in self.entry.orders():
                self.done.append((order.verb, order.target))
                self._unanswered.append(order)
            while self.answers and self._unanswered:
                order = self._unanswered.pop()
                self.entry.reply(order, order.verb != "release", f"{order.verb} {order.target!r}")

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self.entry.remove()


def order(**changes: Any) -> bytes:
    return json.dumps({"pool": POOL, "owner": ADA, "verb": "stop_sweep", "target": "Client-ada/lr", **changes}).encode()


def passed_on(place: Path, body: bytes, answer_seconds: float = PATIENCE_SECONDS) -> tuple[int, dict[str, Any]]:
    async def run() -> tuple[int, dict[str, Any]]:
        watching = Watching(Pools(pytest.fail, place), log)
        return await Ordering(watching, answer_seconds).pass_on(body)

    return asyncio.run(run())


def test_an_order_is_done_and_answered(place: Path) -> None:
    with Notebook(place) as notebook:
        assert passed_on(place, order()) == (200, {"ok": True, "text": "stop_sweep 'Client-ada/lr'"})
        assert passed_on(place, order(verb="release", target="lease-1")) == (
            200,
            {"ok": False, "text": "release 'lease-1'"},
        )
        assert notebook.done == [("stop_sweep", "Client-ada/lr"), ("release", "lease-1")]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"{", 400, "this is no JSON"),
        (b"[" * 10_000, 400, "this is no JSON"),
        (b"[]", 400, "this one has something else"),
        (order(target=3), 400, "this one has something else"),
        (order(verb="rm -rf"), 400, "the order 'rm -rf' is not known here; there is: stop_sweep"),
        (order(target="x" * 600), 400, "at most 512 characters; this one has 600"),
        (order(target="x" * 20_000), 400, "larger than 16 KiB"),
        (order(pool="../../etc"), 404, "there is no such notebook"),
        (order(owner=f"../{ADA}"), 404, "there is no such notebook"),
        (order(owner="%2e%2e%2f"), 404, "there is no such notebook"),
        (order(owner="\ud800\0"), 404, "there is no such notebook"),
        (order(verb="invite", target=""), 409, "joined this pool by an invite, and cannot give any"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(place: Path, body: bytes, status: int, why: str) -> None:
    with Notebook(place, can_invite=False) as notebook:
        got, said = passed_on(place, body)
        assert (got, why in said["message"]) == (status, True), said
        assert notebook.done == []


def test_an_order_that_nobody_takes_is_taken_back(place: Path) -> None:
    Entry(POOL, ADA, "ada.ipynb", True, place).write(at(1.0))
    status, said = passed_on(place, order(), 0.1)
    assert status == 504
    assert said["message"] == "ada.ipynb does not answer, and nothing was done: see whether its kernel hangs."
    assert [each for inbox in place.glob("*.inbox") for each in inbox.iterdir()] == []


def test_an_order_that_was_taken_may_still_be_done(place: Path) -> None:
    with Notebook(place, answers=False) as notebook:
        status, said = passed_on(place, order(), 0.5)
        assert (status, len(notebook.done)) == (504, 1)
        assert said["message"].endswith("has the order, but gave no answer in 0.5 s: it may still do it.")


def test_an_owner_without_an_inbox_cannot_be_told(place: Path) -> None:
    entry = Entry(POOL, ADA, "ada.ipynb", True, place)
    entry.write(at(1.0))
    (place / f"{entry.name}.inbox").rmdir()
    assert passed_on(place, order())[0] == 409


def test_answers_that_nobody_takes_are_forgotten(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Notebook(place) as notebook:
        passed_on(place, order())
    entry = Entry(POOL, ADA, "ada.ipynb", True, place)
    entry.write(at(1.0))
    entry.reply(entries.Order("0" * 16, "invite", ""), True, "kn1-secret")
    assert entry.orders() == []
    assert len(list((place / f"{entry.name}.inbox").iterdir())) == 1
    monkeypatch.setattr(entries, "REPLY_KEPT_SECONDS", 0.0)
    entry.orders()
    assert list((place / f"{entry.name}.inbox").iterdir()) == []
    assert notebook.done


# with a real server

# each answer is written down, and what is in the file of refusals is refused
AUTHORIZER = """
import pathlib
from jupyter_server.auth import Authorizer

class Ours(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        with open({asked!r}, "a") as asked:
            asked.write(f"{{action}} {{resource}}\\n")
        return f"{{action}} {{resource}}" not in pathlib.Path({refused!r}).read_text()

c.ServerApp.authorizer_class = Ours
c.ServerApp.jpserver_extensions = {{"jupyterlab": False, "jupyter_lsp": False, "jupyter_server_terminals": False}}
"""


class Server:
    """A Jupyter server of its own, with our extension switched on as an installed wheel switches it on."""

    def __init__(self, directory: Path) -> None:
        config, self.place = directory / "config", directory / "runtime" / "kalavai_nb"
        shutil.copytree(REPOSITORY / "jupyter-config" / "server-config", config / "jupyter_server_config.d")
        self.asked, self.refused, self.log = directory / "asked", directory / "refused", directory / "log"
        self.refused.touch()
        own = AUTHORIZER.format(asked=str(self.asked), refused=str(self.refused))
        (config / "jupyter_server_config.py").write_text(own)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.token, self.host = os.urandom(8).hex(), f"127.0.0.1:{port}"
        self.base = "/user/ada%40lab.org/"
        kinds = {kind: str(directory / kind.lower()) for kind in ("RUNTIME", "DATA", "CONFIG")}
        command = [
            *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
            *(f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.base_url={self.base}"),
            *(f"--IdentityProvider.token={self.token}", "--ServerApp.allow_unauthenticated_access=False"),
        ]
        environment = {**os.environ, **{f"JUPYTER_{kind}_DIR": path for kind, path in kinds.items()}}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=directory, env=environment, stderr=log)
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(self.stop())

    def url(self, name: str) -> str:
        return f"http://{self.host}{self.base}{name}"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    def get(self, name: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url(f"kalavai-nb/{name}"), headers={**self.authorization, **headers})

    def post(self, body: bytes, **headers: str) -> httpx.Response:
        url = self.url("kalavai-nb/orders")
        return httpx.post(url, content=body, headers={**self.authorization, **headers}, timeout=PATIENCE_SECONDS)

    async def stream(self, **headers: str) -> WebSocketClientConnection:
        url = self.url("kalavai-nb/stream").replace("http", "ws", 1)
        return await websocket_connect(HTTPRequest(url, headers=headers), compression_options={})

    @contextlib.contextmanager
    def browser(self) -> Iterator[httpx.Client]:
        """One that has logged in, and so has cookies instead of a token."""
        with httpx.Client() as client:
            client.get(self.url(f"tree?token={self.token}"))
            yield client

    def stop(self) -> str:
        """End it as a person does; gives its log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_SECONDS)
        return self.log.read_text()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.get("summary").status_code == 200
        time.sleep(0.05)
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("jupyter"))
    yield server
    server.stop()


def cookies_of(client: httpx.Client) -> str:
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)


async def hang_up(stream: WebSocketClientConnection) -> None:
    stream.close()
    while await asyncio.wait_for(stream.read_message(), PATIENCE_SECONDS) is not None:
        pass


async def heard(stream: WebSocketClientConnection) -> dict[str, Any]:
    text = await asyncio.wait_for(stream.read_message(), PATIENCE_SECONDS)
    assert isinstance(text, str)
    message: dict[str, Any] = json.loads(text)
    return message


def test_a_browser_sees_the_pools(server: Server) -> None:
    async def look() -> None:
        with Notebook(server.place) as notebook:
            stream = await server.stream(**server.authorization)
            assert "permessage-deflate" in str(stream.headers and stream.headers["Sec-WebSocket-Extensions"])
            state = (await heard(stream))["state"]
            assert links(state) == {POOL: {ADA: "live"}}
            assert state["pools"][POOL]["snapshot"] == at(1.0)
            for moment in (2.0, 3.0):
                notebook.entry.write(at(moment))
                while state["pools"][POOL]["snapshot"]["time"] < moment:
                    state = apply(state, (await heard(stream)).get("patch", {}))
            stream.write_message("browsers have nothing to say")
            time.sleep(0.6)
            assert server.get("state").json() == state
            assert server.get("summary").json() == {
                "pools": 1, "devices": 3, "gpus": 2, "utilisation": 0.71, "alerts": 1,
            }  # fmt: skip
            # nothing new: a sign of life
            while (message := await heard(stream))["kind"] != "tick":
                assert message["kind"] == "patch"
            await hang_up(stream)

    asyncio.run(look())


def test_an_order_by_the_browser_is_answered_while_others_are_served(server: Server) -> None:
    with Notebook(server.place) as notebook, Notebook(server.place, BOB, answers=False) as slow:
        replies: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: replies.append(server.post(order(owner=BOB))))
        waiting.start()
        reply = server.post(order(verb="invite", target=""))
        assert (reply.status_code, reply.json()) == (200, {"ok": True, "text": "invite ''"})
        assert reply.headers["Cache-Control"] == "no-store"
        assert notebook.done == [("invite", "")]
        reply = server.post(order(owner="nobody"))
        assert (reply.status_code, reply.headers["Content-Type"]) == (404, "application/json")
        assert "no such notebook" in reply.json()["message"]
        assert not replies
        slow.answers = True
        waiting.join()
        assert [reply.json()["ok"] for reply in replies] == [True]
        assert server.get("orders").status_code == 405


@pytest.mark.parametrize("name", ["state", "summary", "orders", "stream"])
def test_without_a_token_nothing_is_said(server: Server, name: str) -> None:
    wrong = {"Authorization": "token wrong"}
    method = "POST" if name == "orders" else "GET"
    for headers in ({}, wrong):
        reply = httpx.request(method, server.url(f"kalavai-nb/{name}"), headers=headers, content=order())
        assert reply.status_code == 403, reply.text
        assert POOL not in reply.text
    # and nowhere else is it to be had
    assert httpx.get(f"http://{server.host}/kalavai-nb/{name}", headers=server.authorization).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Authorization": "token wrong"}])
def test_without_a_token_there_is_no_stream(server: Server, headers: dict[str, str]) -> None:
    with pytest.raises(HTTPClientError) as refused:
        asyncio.run(server.stream(**headers))
    assert refused.value.code == 403


def test_pages_of_others_cannot_ask(server: Server) -> None:
    with server.browser() as browser, Notebook(server.place) as notebook:
        url, foreign = server.url("kalavai-nb/"), {"Origin": "http://evil.example"}
        assert browser.get(f"{url}state").status_code == 200
        assert browser.get(f"{url}state", headers=foreign).status_code == 404
        # an order needs what only pages of this server can read
        assert browser.post(f"{url}orders", content=order()).status_code == 403
        xsrf = {"X-XSRFToken": browser.cookies["_xsrf"]}
        assert browser.post(f"{url}orders", content=order(), headers={**xsrf, **foreign}).status_code == 404
        assert notebook.done == []
        assert browser.post(f"{url}orders", content=order(), headers=xsrf).json()["ok"]

        async def streams() -> None:
            cookies = {"Cookie": cookies_of(browser)}
            await hang_up(await server.stream(**cookies, Origin=f"http://{server.host}"))
            with pytest.raises(HTTPClientError) as refused:
                await server.stream(**cookies, **foreign)
            assert refused.value.code == 403

        asyncio.run(streams())


@pytest.mark.parametrize("trick", ["..%2fapi", "state%2f..", "state/../stream", "%73tate", "state/x", "STATE", "x"])
def test_tricks_with_paths_lead_nowhere(server: Server, trick: str) -> None:
    async def ask() -> int:
        """As it is: other clients tidy up paths before they send them."""
        reader, writer = await asyncio.open_connection(*server.host.split(":"))
        lines = [f"GET {server.base}kalavai-nb/{trick} HTTP/1.0", f"Authorization: token {server.token}", "", ""]
        writer.write("\r\n".join(lines).encode())
        status = (await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)).split()[1]
        writer.close()
        await writer.wait_closed()
        return int(status)

    assert asyncio.run(ask()) == 404


def test_reading_and_ordering_are_authorized_each_for_itself(server: Server) -> None:
    async def streamed() -> int:
        try:
            await hang_up(await server.stream(**server.authorization))
        except HTTPClientError as error:
            return error.code
        return 101

    def outcome(refused: str) -> tuple[int, int, int]:
        server.refused.write_text(refused)
        server.asked.write_text("")
        stream = asyncio.run(streamed())
        return server.get("state").status_code, stream, server.post(order()).status_code

    try:
        assert outcome("") == (200, 101, 404)
        assert set(server.asked.read_text().splitlines()) == {"read kalavai-nb", "execute kalavai-nb"}
        assert outcome("execute kalavai-nb") == (200, 101, 403)
        assert outcome("read kalavai-nb") == (403, 403, 404)
    finally:
        server.refused.write_text("")


def test_what_is_wrong_with_a_file_is_in_the_log_once(server: Server) -> None:
    with Notebook(server.place) as notebook:
        bad = server.place / "p-1-abcd.json"
        bad.write_text(json.dumps({"version": 2}))
        for _ in range(2):
            # what REST gives may be half a second old
            while links(server.get("state").json()) != {POOL: {ADA: "live"}}:
                time.sleep(0.05)
            time.sleep(0.6)
            notebook.entry.write(at(2.0))
        bad.unlink()
    lines = [line for line in server.log.read_text().splitlines() if "p-1-abcd.json" in line]
    assert len(lines) == 1
    assert "upgrade kalavai_nb where the server is installed" in lines[0]


def test_looking_does_not_keep_a_server_from_being_idle(server: Server) -> None:
    def last_activity() -> str:
        headers = server.authorization
        return str(httpx.get(server.url("api/status?no_track_activity=1"), headers=headers).json()["last_activity"])

    with Notebook(server.place):
        server.post(order())
        before = last_activity()
        server.get("state")
        server.get("summary")
        assert last_activity() == before
        server.post(order())
        assert last_activity() > before


def test_a_server_ends_quietly_with_its_streams(tmp_path: Path) -> None:
    server = Server(tmp_path)

    async def end() -> tuple[str, list[Any]]:
        with Notebook(server.place):
            streams = [await server.stream(**server.authorization) for _ in range(3)]
            for stream in streams:
                await heard(stream)
            said = await asyncio.get_running_loop().run_in_executor(None, server.stop)
            rest: list[Any] = []
            for stream in streams:
                while (message := await asyncio.wait_for(stream.read_message(), PATIENCE_SECONDS)) is not None:
                    rest.append(json.loads(str(message))["kind"])
                stream.close()
            return said, rest

    said, rest = asyncio.run(end())
    assert set(rest) <= {"patch", "tick", "state"}
    assert server.process.returncode == 0, said
    for trouble in ("Traceback", "destroyed", "never retrieved", "never awaited", "Error"):
        assert trouble not in said, said
    # neither did it complain when it began: all of our places want to know who asks
    assert "kalavai_nb | extension was successfully loaded" in said
    assert "kalavai_nb.server.handlers" not in said
    assert "/kalavai-nb/" not in "".join(line for line in said.splitlines() if "Warning" in line)


def test_nothing_heavy_is_loaded_into_a_server() -> None:
    code = (
        "import sys, time, jupyter_server.serverapp\n"
        "before, began = set(sys.modules), time.perf_counter()\n"
        "import kalavai_nb, kalavai_nb.server, kalavai_nb.server.handlers\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new), kalavai_nb._jupyter_server_extension_points(), time.perf_counter() - began)\n"
        "assert not {'dask', 'distributed', 'torch', 'psutil', 'pandas', 'numpy'} & set(sys.modules)\n"
    )
    said = subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True)
    assert "[{'module': 'kalavai_nb.server'}]" in said
    assert float(said.split()[-1]) < 1.0
