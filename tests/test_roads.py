"""Three machines on one host, by their names: two that can dial each other, and one that nobody can.

Each has an agent that exposes ports at a gate, which is this very host, and a proxy that leads there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kalavai_nb.engine import Engine
from kalavai_nb.errors import NotEnoughDevices
from kalavai_nb.frames import dial, dial_first, hello
from kalavai_nb.gang import Rank
from kalavai_nb.identity import CurrentIdentity, Identity
from kalavai_nb.lm.load import load
from kalavai_nb.lm.settings import Settings
from kalavai_nb.machine import HeadOrder, Order
from kalavai_nb.options import RunOptions
from kalavai_nb.rendezvous import environment, own_address, strangers
from kalavai_nb.roads import (
    LOOPBACK,
    PORTS,
    RELAY,
    Post,
    Site,
    by_pair,
    connect,
    first_reached,
    interface_of,
    link_words,
    listener,
    own_addresses,
)
from kalavai_nb.security import Authority
from kalavai_nb.session import Session
from kalavai_nb.state import Device, Link, Need
from kalavai_nb.worker.devices import cpu_stand_ins
from kalavai_nb.worker.roads import Roads
from kalavai_nb.worker.stage.door import Door, round_trip_seconds
from tiny_lm import tiny_lm

LIMIT_SECONDS = 60.0
TOKENS = 30
LINK = Link("a", "b", True, "10.0.0.2", 0.0003, 9.4e8)


# nouns


@pytest.mark.parametrize(
    ("source", "links", "ways"),
    [
        ("b", [], [(LOOPBACK, 25000), (RELAY, 31)]),
        ("a", [LINK], [("10.0.0.2", 25000), (RELAY, 31)]),
        ("a", [replace(LINK, direct=False, address="")], [(RELAY, 31)]),
        ("a", [], [(RELAY, 31)]),
        ("c", [LINK], [(RELAY, 31)]),
    ],
)
def test_ways_are_tried_best_first(source: str, links: list[Link], ways: list[tuple[str, int]]) -> None:
    post = Post("b", 25000, LOOPBACK, ("10.0.0.2", "192.168.0.2"), 31)
    assert post.ways_from(source, by_pair(links)) == ways


def test_where_there_is_no_gate_a_stage_is_where_it_listens() -> None:
    assert Post("b", 25000).ways_from("a", {}) == [(LOOPBACK, 25000)]
    assert Post("b", 25000, "10.0.0.2", ("10.0.0.2",)).ways_from("a", {}) == [("10.0.0.2", 25000)]
    assert Post("b", 25000, "10.0.0.2", ("10.0.0.2",)).ways_from("b", {}) == [("10.0.0.2", 25000)]


def test_a_machine_listens_to_others_only_where_it_has_a_gate_and_its_owner_lets_it() -> None:
    assert (Site().door, Site().addresses()) == (LOOPBACK, [])
    assert (Site("/agent", 1, listens=False).door, Site("/agent", 1, listens=False).addresses()) == (LOOPBACK, [])
    assert (Site("/agent", 1).door, Site("/agent", 1).addresses()) == ("", own_addresses())
    assert (Site(host="10.0.0.5").door, Site(host="10.0.0.5").addresses()) == ("10.0.0.5", ["10.0.0.5"])


def test_what_listens_to_others_does_so_on_a_port_that_was_stated() -> None:
    with listener("") as everywhere, listener(LOOPBACK) as here:
        assert everywhere.getsockname()[1] in PORTS
        assert here.getsockname()[0] == LOOPBACK
        with connect((LOOPBACK, everywhere.getsockname()[1]), 0, 5):
            pass


def test_interfaces_are_found_by_their_addresses() -> None:
    assert interface_of(LOOPBACK) in ("lo", "lo0")
    assert all(interface_of(address) for address in own_addresses())
    assert LOOPBACK not in own_addresses()
    assert (interface_of("192.0.2.77"), interface_of(""), interface_of("box")) == ("", "", "")


def test_ways_in_words() -> None:
    links = [LINK, Link("a", "c", False, "", 0.024), Link("a", "d", False)]
    assert link_words(links, {"b": "desk"}) == "c by the gate, 24 ms; d by the gate; desk 0.3 ms, 940 MB/s"


def test_the_first_address_that_answers_wins() -> None:
    never = threading.Event()

    def reach(address: str) -> str:
        if address == "never":
            never.wait(30)
        if address == "nobody":
            raise ConnectionRefusedError
        return address.upper()

    assert first_reached(["never", "nobody", "here"], reach, 20) == {"here": "HERE"}
    assert first_reached(["nobody"], reach, 20) == {}
    assert first_reached([], reach, 20) == {}
    never.set()


# where ranks meet


def rank(number: int, machine: str, worker: str = "tls://127.0.0.1:1") -> Rank:
    return Rank(number, "l", [Device(f"d{number}", 0, "cpu", "x", machine, machine, 1, "", worker)], port=25000)


def test_ranks_on_one_machine_meet_on_its_loopback() -> None:
    ranks = [rank(0, "a"), rank(1, "a")]
    assert environment(ranks, ranks[1], 2, {})["MASTER_ADDR"] == LOOPBACK
    assert own_address(ranks, ranks[1], {}) == LOOPBACK
    assert strangers(ranks, {}) == []


def test_ranks_on_several_machines_meet_where_each_finds_the_first() -> None:
    ranks = [rank(0, "a"), rank(1, "b"), rank(2, "c")]
    links = by_pair(
        Link(source, target, True, f"10.0.{source}.{target}")
        for source in "abc"
        for target in "abc"
        if source != target
    )
    at = [environment(ranks, each, 3, links)["MASTER_ADDR"] for each in ranks]
    assert at == ["10.0.b.a", "10.0.b.a", "10.0.c.a"]
    assert [own_address(ranks, each, links) for each in ranks] == ["10.0.b.a", "10.0.a.b", "10.0.a.c"]
    assert strangers(ranks, links) == []
    links["c", "b"] = Link("c", "b", False)
    assert strangers(ranks, links) == [(ranks[1], ranks[2])]


def test_workers_with_addresses_of_their_own_reach_each_other() -> None:
    ranks = [rank(0, "a", "tls://10.0.0.1:1"), rank(1, "b", "tls://10.0.0.2:1")]
    assert environment(ranks, ranks[1], 2, {})["MASTER_ADDR"] == "10.0.0.1"
    assert strangers(ranks, {}) == []


# a certificate that is renewed


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("roads")


def test_a_door_shows_the_certificate_of_now(authority: Authority, tmp_path: Path) -> None:
    file, first, second = tmp_path / "identity.json", *(authority.issue(name, listens=True) for name in "ab")
    current = CurrentIdentity(first, file)
    door = Door(LOOPBACK, current, "key", lambda *_: None, lambda _: None, lambda _: None)
    context = first.context(server=False)

    def shown() -> Any:
        connection = dial((LOOPBACK, door.port), context, hello("ring", "key"), 5)
        with contextlib.closing(connection):
            [[(_, name)]] = (connection.getpeercert() or {})["subject"]
            return name

    assert shown() == "a"
    file.write_text("{")
    assert shown() == "a"
    file.write_text(json.dumps(asdict(second)))
    os.utime(file, ns=(1, 1))
    assert shown() == "b"
    assert current.now == second


# measuring


def test_a_stranger_is_not_measured(authority: Authority, tmp_path: Path) -> None:
    """Whoever dials without the nonce gets nothing, and one without a certificate does not come so far."""
    import asyncio

    identity = authority.issue("worker:a", listens=True)
    roads = Roads(Site("/agent"), CurrentIdentity(identity), tmp_path)

    async def measured(nonce: str, dialled: str) -> dict[str, Any]:
        door = await roads.kn_listen(nonce=nonce)
        return await roads.kn_dial(nonce=dialled, port=door["port"], addresses=[LOOPBACK])

    right, wrong = secrets.token_hex(16), secrets.token_hex(16)
    found = asyncio.run(measured(right, right))
    assert found["address"] == LOOPBACK
    assert 0 < found["rtt_seconds"] < 5
    assert found["bytes_per_second"] > 1e5
    assert asyncio.run(measured(right, wrong)) == {}
    foreign = Roads(Site("/agent"), CurrentIdentity(Authority("x").issue("worker:a", listens=True)), tmp_path)

    async def from_abroad() -> dict[str, Any]:
        door = await roads.kn_listen(nonce=right)
        return await foreign.kn_dial(nonce=right, port=door["port"], addresses=[LOOPBACK])

    assert asyncio.run(from_abroad()) == {}


def test_a_machine_that_only_dials_out_opens_nothing(authority: Authority, tmp_path: Path) -> None:
    import asyncio

    identity = CurrentIdentity(authority.issue("worker:a", listens=True))
    roads = Roads(Site("/agent", 1, listens=False), identity, tmp_path)
    assert asyncio.run(roads.kn_listen(nonce="x")) == {"port": 0, "addresses": []}


# the ways through a gate


class Agent:
    """Exposes ports at a gate that is on this host, where they have the same numbers already."""

    def __init__(self, path: Path) -> None:
        self.path, self.exposed = str(path / "agent.sock"), set[int]()
        agent = self

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked = json.loads(self.rfile.readline())
                if asked["op"] == "expose":
                    agent.exposed.add(asked["port"])
                elif asked["op"] == "hide":
                    agent.exposed.discard(asked["port"])
                self.wfile.write(json.dumps({"relay": asked["port"]}).encode() + b"\n")

        # a path that is longer than a socket's may be
        with contextlib.chdir(path):
            self.server = socketserver.ThreadingUnixStreamServer("agent.sock", Answer)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Proxy:
    """SOCKS5 to ports of this host; ``refuses`` what it does not lead to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.refuses = False
        self.listener = socket.create_server((LOOPBACK, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            stream = caller.makefile("rb", buffering=0)
            assert stream.read(3) == b"\x05\x01\x00"
            caller.sendall(b"\x05\x00")
            head = stream.read(5)
            assert head
            assert head[:4] == b"\x05\x01\x00\x03"
            name, port = stream.read(head[4]), int.from_bytes(stream.read(2) or b"", "big")
            self.asked.append(((name or b"").decode(), port))
            if self.refuses:
                caller.sendall(b"\x05\x05\x00\x01" + bytes(6))
                return
            with socket.create_connection((LOOPBACK, port)) as called:
                # with a name, as some proxies answer
                caller.sendall(b"\x05\x00\x00\x03\x04here\x00\x01")
                there = threading.Thread(target=_carry, args=(caller, called), daemon=True)
                there.start()
                _carry(called, caller)
                there.join()

    def close(self) -> None:
        self.listener.close()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


def test_a_stage_is_reached_through_the_gate(authority: Authority, proxy: Proxy) -> None:
    identity = authority.issue("worker:a", listens=True)
    door = Door(LOOPBACK, CurrentIdentity(identity), "key", lambda *_: None, lambda _: None, lambda _: None)
    context = identity.context(server=False)
    # what is not there is passed by
    with listener(LOOPBACK) as gone:
        nobody = (LOOPBACK, gone.getsockname()[1])
    ways = [nobody, (RELAY, door.port)]
    assert round_trip_seconds(ways, context, "key", proxy.port) < 5
    assert proxy.asked == [(RELAY, door.port)]
    # on the gate's machine its ports are just there
    assert round_trip_seconds(ways, context, "key", 0) < 5
    assert len(proxy.asked) == 1
    with pytest.raises(ConnectionError, match=r"hung up|reset"):
        round_trip_seconds(ways, context, "another key", proxy.port)


def test_a_way_that_is_gone_is_said(authority: Authority, proxy: Proxy) -> None:
    context = authority.issue("user:a", listens=False).context(server=False)
    proxy.refuses = True
    with pytest.raises(ConnectionError, match=r"relay:9: the gate does not lead there any more \(SOCKS5 reply 5\)"):
        dial_first([(RELAY, 9)], context, hello("ring", "key"), 5, proxy.port)
    with pytest.raises(ConnectionError, match="there is no way there"):
        dial_first([], context, hello("ring", "key"), 5)


# three machines


class Machine:
    """The process of a machine, with its agent and its proxy."""

    def __init__(self, name: str, home: Path) -> None:
        (home / name).mkdir()
        self.name, self.home = name, home
        self.agent, self.proxy = Agent(home / name), Proxy()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kalavai_nb.machine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "KALAVAI_HOME": str(home)},
            start_new_session=True,
        )

    def begin(self, identity: Identity, head: Any, address: str, *, listens: bool) -> str:
        """Order it to lend a device; the address of the head."""
        name = self.name
        [device] = cpu_stand_ins(1)
        order: Order = {
            "head": head,
            "address": address,
            "identity": asdict(identity),
            "devices": [asdict(replace(device, id=f"{name}/cpu:0", host=name, machine=name))],
            "contacts": {},
            "leaving": {},
            "limits": {},
            "proxy": self.proxy.port,
            "agent": self.agent.path,
            "listens": listens,
            "cwd": str(self.home),
            "measure": True,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        said: str = json.loads(self.process.stdout.readline())["address"]
        return said

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.agent.close()
        self.proxy.close()


Pool = tuple[Engine, dict[str, Machine]]


@pytest.fixture(scope="module")
def pool(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    if not own_addresses():
        pytest.skip("this host has no address but loopback, so no machine can be dialled from another")
    home = tmp_path_factory.mktemp("a-path-that-is-longer-than-the-path-of-a-unix-socket-may-be-on-any-system-there-is")
    head: HeadOrder = {
        "pool": "roads",
        "host": LOOPBACK,
        "port": 0,
        "idle_seconds": 60.0,
        "away_seconds": 30.0,
        "identity": asdict(authority.issue("head", listens=True)),
        "denied": [],
    }
    with contextlib.ExitStack() as stack:
        # all at once, since each takes its time to import what it needs
        machines = {name: Machine(name, home) for name in ("one", "two", "hidden")}
        for machine in machines.values():
            stack.callback(machine.close)
        address = ""
        for name, machine in machines.items():
            identity = authority.issue(f"worker:{name}", listens=True)
            given = None if address else head
            address = machine.begin(identity, given, address, listens=name != "hidden")
        engine = Engine(address, authority.issue("user:me", listens=False), "me")
        stack.callback(engine.close)
        wait_until(lambda: len(engine.snapshot().links) == 6)
        yield engine, machines


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.1)


def test_machines_measure_the_ways_between_them(pool: Pool) -> None:
    engine, _ = pool
    links = by_pair(engine.snapshot().links)
    for pair in (("one", "two"), ("two", "one"), ("hidden", "one"), ("hidden", "two")):
        assert links[pair].direct
        assert links[pair].address in own_addresses()
        assert 0 < (links[pair].rtt_seconds or 0) < 5
        assert (links[pair].bytes_per_second or 0) > 1e5
    for pair in (("one", "hidden"), ("two", "hidden")):
        assert (links[pair].direct, links[pair].bytes_per_second) == (False, None)
        assert 0 < (links[pair].rtt_seconds or 0) < 5
    words = {machine.id: machine.links for machine in engine.snapshot().machines}
    assert "hidden by the gate" in words["one"]
    assert "B/s" in words["two"]


def test_devices_come_with_their_speed(pool: Pool) -> None:
    engine, _ = pool
    assert all(device.flops and device.copy_bytes_per_second for device in engine.snapshot().devices)


def test_a_gang_meets_where_its_machines_reach_each_other(pool: Pool) -> None:
    engine, _ = pool
    said: list[str] = []
    session, namespace = Session(engine, said.append), dict[str, Any]()
    source = (
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "total = torch.ones(1)\ndist.all_reduce(total)\ndist.destroy_process_group()\n"
        "found = total.item(), os.environ['MASTER_ADDR'], os.environ['GLOO_SOCKET_IFNAME']"
    )
    run = session.run(source, RunOptions().updated({"gpus": 2, "out": "found", "show": "none"}), namespace)
    assert run.error() is None
    [(total, address, interface), other] = namespace["found"]
    assert total == other[0] == 2
    assert {device.host for rank in run.ranks for device in rank.devices} == {"one", "two"}
    assert address in own_addresses()
    assert interface == interface_of(address)
    assert said == []
    session.roster.restart()


def test_ranks_that_do_not_reach_each_other_are_told_of(pool: Pool) -> None:
    engine, _ = pool
    said: list[str] = []
    session, namespace = Session(engine, said.append), dict[str, Any]()
    for _ in range(2):
        session.run("rank", RunOptions().updated({"show": "none"}), namespace)
    told = [line for line in said if "do not reach each other" in line]
    assert len(told) == 1
    assert "torch.distributed will not work between them" in told[0]
    with pytest.raises(NotEnoughDevices, match=r"reach=direct wants; %pool restart"):
        session.run("rank", RunOptions().updated({"reach": "direct", "show": "none"}), namespace)
    session.roster.restart()


def test_a_gang_that_must_be_connected_is_not_placed_on_a_hidden_machine(pool: Pool) -> None:
    engine, _ = pool
    with pytest.raises(NotEnoughDevices):
        engine.acquire(Need(engine.owner, 3, connected=True), 0.0)
    leases, _ = engine.acquire(Need(engine.owner, 3), 5.0)
    engine.release(lease.id for lease in leases)


def test_a_model_goes_over_machines_by_the_ways_there_are(pool: Pool, tmp_path: Path) -> None:
    engine, machines = pool
    path = tiny_lm(tmp_path)
    # on the machine that nobody can dial, and on another
    [lease], _ = engine.acquire(Need(engine.owner, 1, host="two"), 30.0)
    with load(engine, path, Settings("auto", None, 2, 300, 4, 0, 30.0), 1, 0, False) as lm:
        exposed = {port for machine in machines.values() for port in machine.agent.exposed}
        assert lm.generate("hello", max_new_tokens=TOKENS) == alone(path, "hello")
    engine.release([lease.id])
    assert len(exposed) == 2
    asked = {port for name in ("one", "two") for _, port in machines[name].proxy.asked}
    assert len(asked) == 1
    assert asked <= exposed
    assert machines["hidden"].proxy.asked == []
    wait_until(lambda: not any(machine.agent.exposed for machine in machines.values()))


def alone(path: Path, prompt: str) -> str:
    """What transformers makes of it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(made, skip_special_tokens=True))


def test_ways_to_a_machine_that_is_gone_are_forgotten(pool: Pool) -> None:
    engine, machines = pool
    machines["hidden"].process.kill()
    wait_until(lambda: len(engine.snapshot().links) == 2)
