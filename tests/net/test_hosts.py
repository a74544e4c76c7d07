"""The hosts themselves: what they have of their own, what a router lets in, what becomes of them when a test dies."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hosts import Host, Network, program

SERVE = """
import socket
listener = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
while True:
    caller, address = listener.accept()
    caller.sendall(address[0].encode())
    caller.close()
"""
CALL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 5000), timeout=0.5) as called:
        print(called.recv(100).decode())
except OSError as error:
    print("nobody" if isinstance(error, TimeoutError) else repr(error))
"""
ABANDON = """
import sys, time
sys.path.insert(0, sys.argv[1])
from hosts import Network
from pathlib import Path
network = Network(Path(sys.argv[2]))
host = network.host("one")
print(host.pid, host.begin(["sleep", "1000"]).pid, flush=True)
time.sleep(1000)
"""


def serve(host: Host) -> psutil.Process:
    popen = host.begin([sys.executable, "-c", SERVE])
    assert popen.stdout
    assert popen.stdout.readline() == "up\n"
    return program(popen)


def call(host: Host, address: str) -> str:
    return host.python(CALL, address).strip()


def test_a_router_lets_out_and_lets_nothing_in(network: Network) -> None:
    one, other, hidden = network.host("one"), network.host("other"), network.host("hidden", behind_nat=True)
    serve(one)
    serve(hidden)
    assert call(other, one.address) == other.address
    assert call(hidden, one.address) == hidden.seen_as != hidden.address
    assert call(other, hidden.seen_as) == "nobody"
    other.do("ip", "route", "add", hidden.address, "via", hidden.seen_as)
    assert call(other, hidden.address) == "nobody", "who knows the way is not let in either"
    assert one.ports() == hidden.ports() == {5000}
    assert other.ports() == set()


def test_a_partition_is_silent_and_a_frozen_host_still_has_its_connections(network: Network) -> None:
    one, other = network.host("one"), network.host("other")
    serving = serve(one)
    one.partition()
    assert call(other, one.address) == "nobody"
    assert call(one, "127.0.0.1") == "127.0.0.1"
    one.heal()
    assert call(other, one.address) == other.address
    one.freeze()
    assert call(other, one.address) == "nobody"
    assert serving.status() == psutil.STATUS_STOPPED
    one.thaw()
    assert call(other, one.address) == other.address
    one.kill()
    assert one.processes() == []
    assert "ConnectionRefusedError" in call(other, one.address)


def test_hosts_have_names_pids_and_homes_of_their_own(network: Network) -> None:
    one, other = network.host("one"), network.host("other")
    source = "import os, socket, pathlib, uuid; print(socket.gethostname(), pathlib.Path.home().name, uuid.getnode())"
    assert one.python(source).split()[:2] == ["one", "one"]
    assert one.python(source) != other.python(source)
    serving = serve(one)
    assert one.inside(int(one.do("pgrep", "-o", "-f", "create_server"))) == serving


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_tells_another_time_and_waits_as_long(network: Network, hours: int) -> None:
    host = network.host("one")
    host.clock_seconds = hours * 3600
    said = host.python(
        "import time, threading\nnow, begun = time.time(), time.monotonic()\nthreading.Event().wait(0.3)\n"
        "print(now, time.monotonic() - begun)"
    )
    now, waited = map(float, said.split())
    assert abs(now - time.time() - hours * 3600) < 60
    assert 0.3 <= waited < 3


def test_nothing_is_left_of_hosts_when_a_test_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ABANDON, str(Path(__file__).parent.parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout
        processes = [psutil.Process(int(pid)) for pid in test.stdout.readline().split()]
        assert all(process.is_running() for process in processes)
        test.kill()
    assert not psutil.wait_procs(processes, timeout=20)[1]
