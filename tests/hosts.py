"""Machines on a network, each a set of namespaces of this machine: address, host name, processes and home of its own.

A switch joins them (an own namespace with a bridge). A host may sit behind a router that lets nothing in. Hosts can be
cut off without a word, frozen, killed, and have clocks that are wrong. Each host is held by one process, the first of
its process namespace, that reads a pipe of this process: when the test ends, however it ends, the kernel ends all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

CLOCK = Path(__file__).with_name("wrong_clock.c")
TOOLS = ("ip", "nft", "unshare", "nsenter")
# the first process takes care of nothing but to be there: orphans of a host are reaped by the kernel
HOLD = "trap '' CHLD; exec cat"
OWN = ("--net", "--uts", "--pid", "--mount", "--ipc")
SWITCH_RULES = """
table bridge cuts {
  set cut { type ifname; }
  chain passing {
    type filter hook forward priority 0; policy accept;
    ether type ip iifname @cut drop
    ether type ip oifname @cut drop
  }
}
"""
# what comes from inside goes out under the router's address; nothing else comes in
ROUTER_RULES = """
table ip translation {
  chain out { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
table inet wall {
  chain through {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "inside" accept
  }
  chain to_router { type filter hook input priority 0; policy drop; ct state established,related accept; }
}
"""


@functools.cache
def why_not() -> str:
    """What keeps this machine from having hosts as namespaces; empty where nothing does."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"{', '.join(missing)} not there: apt-get install iproute2 nftables util-linux"
    said = subprocess.run(
        ["unshare", *OWN, "--fork", "--kill-child", "--mount-proc", "nft", "-f", "-"],
        input=SWITCH_RULES + ROUTER_RULES,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stderr.strip() and f"namespaces cannot be had here: {said.stderr.strip().splitlines()[0]}"


class Namespace:
    """Namespaces held by one process, and what can be run in them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", *OWN, "--fork", "--kill-child", "--mount-proc", "sh", "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdin
        assert self._holder.stdout
        # it says what it hears: then all is set up
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        self._holder.stdout.readline()
        [self._first] = psutil.Process(self._holder.pid).children()
        self.pid = self._first.pid
        self._inode = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        self.do("hostname", name)
        self.do("ip", "link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that is to run in here."""
        return ["nsenter", "--target", str(self.pid), *OWN, "--"]

    def do(self, *command: str, given: str | None = None) -> str:
        """Run a command of the network's; what it said. Raises CalledProcessError with its words."""
        done = subprocess.run([*self.prefix, *command], input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} in {self.name}: {done.stderr.strip()}")
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """All processes in here but those that hold it, by pids of the test."""
        holding = (self.pid, self._holder.pid)
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if pid not in holding and os.stat(f"/proc/{pid}/ns/net").st_ino == self._inode:
                    found.append(psutil.Process(pid))
        return found

    def inside(self, pid: int) -> psutil.Process:
        """The process that has this pid in here."""
        for process in self.processes():
            if _pid_inside(process.pid) == pid:
                return process
        raise ProcessLookupError(f"no process {pid} in {self.name}")

    def close(self) -> None:
        """End all that runs in here, and the namespaces with it. Idempotent."""
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.kill()
        self._holder.wait()
        with contextlib.suppress(psutil.Error):
            self._first.kill()
        self._holder.stdin.close()
        self._holder.stdout.close()


class Host(Namespace):
    """A machine of the network. Others see it ``seen_as`` its address, or that of its router."""

    def __init__(self, network: Network, name: str, address: str, port: str, home: Path) -> None:
        super().__init__(name)
        self.address = self.seen_as = address
        self.home = home
        self.clock_seconds = 0.0
        self._network = network
        self._port = port
        self._popen: list[subprocess.Popen[str]] = []
        self._files: list[IO[Any]] = []
        home.mkdir(parents=True, exist_ok=True)

    # its programs

    @property
    def environment(self) -> dict[str, str]:
        """What its programs find in their environment: nothing that another host has, too."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "JUPYTER_", "KALAVAI_"))}
        own |= {"HOME": str(self.home), "KALAVAI_HOME": str(self.home / "kalavai"), "CUDA_VISIBLE_DEVICES": ""}
        own |= {"JUPYTER_RUNTIME_DIR": str(self.home / "runtime"), "PYTHONUNBUFFERED": "1"}
        if self.clock_seconds:
            library = _built_clock(self._network.directory)
            own |= {"LD_PRELOAD": str(library), "WRONG_CLOCK": f"{self.clock_seconds:.0f}"}
        return own

    def begin(
        self, command: Sequence[str], *, stdin: int | None = subprocess.DEVNULL, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program; what it says on stderr is in ``program-<number>.log``. Its own pid is that of `program`."""
        log = open(self.home / f"program-{len(self._popen)}.log", "w+")
        self._files.append(log)
        popen = subprocess.Popen(
            # a test that runs in the background ignores Ctrl-C, and all that it starts would, too
            [*self.prefix, "env", "--default-signal=INT,HUP", *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=self.home,
            env={**self.environment, **(env or {})},
            start_new_session=True,
        )
        self._popen.append(popen)
        return popen

    def run(self, command: Sequence[str], *, given: str | None = None, limit: float = 120.0) -> str:
        """Run a program to its end; its output. Raises RuntimeError with its words where it fails."""
        done = self.end_of(command, given=given, limit=limit)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)[:200]} on {self.name} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def end_of(
        self, command: Sequence[str], *, given: str | None = None, limit: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever that is."""
        return subprocess.run(
            [*self.prefix, *command],
            input=given,
            capture_output=True,
            text=True,
            cwd=self.home,
            env=self.environment,
            timeout=limit,
            check=False,
        )

    def python(self, source: str, *words: str, limit: float = 120.0) -> str:
        """What a piece of Python prints here."""
        return self.run([sys.executable, "-c", source, *words], limit=limit)

    # what happens to it

    def partition(self) -> None:
        """From now on nothing comes or goes, and nobody is told."""
        self._network.do("nft", "add", "element", "bridge", "cuts", "cut", "{", self._port, "}")

    def heal(self) -> None:
        """The end of a partition."""
        self._network.do("nft", "delete", "element", "bridge", "cuts", "cut", "{", self._port, "}")

    def freeze(self) -> None:
        """All its processes stand still, as those of a machine that sleeps; its kernel still answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The end of a freeze."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """All its processes are gone at once, as those of a machine that reboots; host and home stay."""
        while self.processes():
            self._signal(signal.SIGKILL)
        for popen in self._popen:
            popen.wait()

    def rate(self, bits_per_second: float, held_seconds: float = 0.2) -> None:
        """What it sends leaves at no more than this rate."""
        rate = f"{bits_per_second:.0f}bit"
        self.do("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb",
                "latency", f"{held_seconds * 1000:.0f}ms")  # fmt: skip

    def lose(self, share: float) -> None:
        """Of what comes to it, this share is lost."""
        per_mille = round(share * 1000)
        rule = f"numgen random mod 1000 < {per_mille} drop"
        self.do("nft", "-f", "-", given=f"table inet loss {{\n chain in {{\n type filter hook input priority 0;\n"
                f' iifname "eth0" {rule}\n }}\n}}\n')  # fmt: skip

    def ports(self) -> set[int]:
        """TCP ports on which it listens for others: those on loopback are its own affair."""
        listening = self.do("ss", "-Htln").splitlines()
        sockets = [line.split()[3].rsplit(":", 1) for line in listening]
        return {int(port) for host, port in sockets if not host.strip("[]").startswith(("127.", "::1"))}

    def close(self) -> None:
        super().close()
        for popen in self._popen:
            popen.wait()
            for pipe in (popen.stdin, popen.stdout):
                if pipe:
                    pipe.close()
        for file in self._files:
            file.close()

    def _signal(self, number: int) -> None:
        # again until there is nobody new: a process may fork while it is looked at
        told: set[int] = set()
        while new := [process for process in self.processes() if process.pid not in told]:
            for process in new:
                told.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)


class Network(Namespace):
    """The switch, and all hosts at it: 10.77.0.0/24. Nothing leads out of it."""

    def __init__(self, directory: Path) -> None:
        super().__init__("switch")
        self.hosts: dict[str, Host] = {}
        self._routers: list[Namespace] = []
        self.directory = directory
        self._count = 1
        self.do("ip", "link", "add", "lan", "type", "bridge")
        self.do("ip", "link", "set", "lan", "up")
        self.do("nft", "-f", "-", given=SWITCH_RULES)

    def host(self, name: str, *, behind_nat: bool = False) -> Host:
        """A new host; one that is ``behind_nat`` reaches all others, and none of them reaches it."""
        self._count += 1
        address, port = f"10.77.0.{self._count}", f"port{self._count}"
        home = self.directory / name
        if not behind_nat:
            host = Host(self, name, address, port, home)
            self._plug(host, "eth0", port, address)
        else:
            router = Namespace(f"router{self._count}")
            self._routers.append(router)
            self._plug(router, "wan", port, address)
            router.do("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            router.do("nft", "-f", "-", given=ROUTER_RULES)
            host = Host(self, name, f"192.168.{self._count}.2", port, home)
            host.seen_as = address
            _wire(router, "inside", host, "eth0")
            _address(router, "inside", f"192.168.{self._count}.1")
            _address(host, "eth0", host.address)
            host.do("ip", "route", "add", "default", "via", f"192.168.{self._count}.1")
        self.hosts[name] = host
        return host

    def close(self) -> None:
        for each in [*self.hosts.values(), *self._routers]:
            each.close()
        super().close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plug(self, one: Namespace, interface: str, port: str, address: str) -> None:
        _wire(self, port, one, interface)
        self.do("ip", "link", "set", port, "master", "lan")
        _address(one, interface, address)


def _built_clock(directory: Path) -> Path:
    library = directory / "wrong_clock.so"
    if not library.exists():
        compiler = shutil.which("cc")
        if not compiler:
            pytest.skip("no C compiler to build a wrong clock with")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK), "-ldl"], check=True)
    return library


def _wire(one: Namespace, interface: str, other: Namespace, other_interface: str) -> None:
    """A cable between two. Made from outside, where both pids mean something."""
    cable = ["ip", "link", "add", interface, "type", "veth", "peer", "name", other_interface, "netns", str(other.pid)]
    subprocess.run(["nsenter", "--target", str(one.pid), "--net", "--", *cable], check=True, capture_output=True)
    one.do("ip", "link", "set", interface, "up")


def _address(one: Namespace, interface: str, address: str) -> None:
    one.do("ip", "address", "add", f"{address}/24", "dev", interface)
    one.do("ip", "link", "set", interface, "up")


def _pid_inside(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def program(popen: subprocess.Popen[str], limit: float = 10.0) -> psutil.Process:
    """The program itself that `Host.begin` started: what stands before it only waits for it."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if below := psutil.Process(popen.pid).children():
            return below[0]
        time.sleep(0.005)
    raise ProcessLookupError(f"process {popen.pid} has started nothing")
