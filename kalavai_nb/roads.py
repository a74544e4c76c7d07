"""The ways between machines of a pool: which there are, and how a connection is made over one of them.

What listens is reached in one of three ways: on the machine itself by loopback; from another machine at one of
its addresses, where no firewall is between; else through the pool's gate, which has a port for it on its own loopback.
A machine comes to that port by the SOCKS5 proxy of its own link to the gate; on the gate's machine it is just there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kalavai_nb.state import Link

LOOPBACK = "127.0.0.1"
# below the range that systems hand out by themselves, so a port that is free now stays free
PORTS = range(20000, 32000)
# as a host: a port of the gate's loopback
RELAY = "relay"
# a machine in the same house answers in a moment; what drops what it is sent never does
DIRECT_SECONDS = 1.5
AGENT_SECONDS = 15.0
LONGEST_PATH = 107

T = TypeVar("T")
Way = tuple[str, int]


@dataclass(frozen=True)
class Site:
    """How a machine stands in its pool: its agent's socket and its link's proxy, where it has a gate between.

    ``listens`` is whether its owner lets others dial it. Without a gate, stages listen at ``host``.
    """

    agent: str = ""
    proxy: int = 0
    listens: bool = True
    host: str = LOOPBACK

    @property
    def door(self) -> str:
        """Where what others are to reach has to listen; empty is on all interfaces."""
        return "" if self.agent and self.listens else self.host

    def addresses(self) -> list[str]:
        """Where others may try to dial this machine."""
        if not self.door:
            return own_addresses()
        return [] if self.door == LOOPBACK else [self.door]

    async def expose(self, port: int) -> int:
        """Have the gate lead to this loopback port; the port there, 0 where it cannot be or there is no gate."""
        if not self.agent:
            return 0
        answer = await asyncio.to_thread(self._ask, {"op": "expose", "port": port})
        return int(answer.get("relay", 0))

    async def hide(self, port: int) -> None:
        """Nothing listens there any more."""
        if self.agent:
            await asyncio.to_thread(self._ask, {"op": "hide", "port": port})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the agent answers; nothing where it is gone, and this machine's way to the pool with it."""
        directory, name = os.path.split(self.agent)
        with socket.socket(socket.AF_UNIX) as caller, contextlib.suppress(OSError, ValueError):
            caller.settimeout(AGENT_SECONDS)
            # the path of a socket is short by the system's order; that of a directory need not be
            file = os.open(directory, os.O_RDONLY)
            try:
                caller.connect(self.agent if len(self.agent) < LONGEST_PATH else f"/proc/self/fd/{file}/{name}")
            finally:
                os.close(file)
            caller.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(caller.makefile("rb").readline())
            return answer if isinstance(answer, dict) else {}
        return {}


@dataclass(frozen=True)
class Post:
    """Where something listens: its machine, and where on it; the machine's addresses; its port at the gate.

    Without addresses it listens on loopback only; without a ``relay`` the gate does not lead to it.
    """

    machine: str
    port: int
    host: str = LOOPBACK
    addresses: tuple[str, ...] = ()
    relay: int = 0

    def ways_from(self, machine: str, links: Mapping[tuple[str, str], Link]) -> list[Way]:
        """The ways from a machine, best first. Where nothing is known of them, those that always work."""
        relayed = [(RELAY, self.relay)] if self.relay else []
        if machine == self.machine or not (relayed or self.addresses):
            return [(self.host, self.port), *relayed]
        link = links.get((machine, self.machine))
        if link and link.direct:
            return [(link.address, self.port), *relayed]
        return relayed or [(address, self.port) for address in self.addresses]


def connect(way: Way, proxy: int, timeout_seconds: float) -> socket.socket:
    """A connection over one way; ``proxy`` is the port of the link here, 0 on the gate's machine. Raises OSError."""
    host, port = way
    if host != RELAY:
        return socket.create_connection(way, timeout_seconds)
    if not proxy:
        return socket.create_connection((LOOPBACK, port), timeout_seconds)
    connection = socket.create_connection((LOOPBACK, proxy), timeout_seconds)
    try:
        _ask_proxy(connection, host, port)
    except BaseException:
        connection.close()
        raise
    return connection


def listener(host: str) -> socket.socket:
    """On a free port of this host; where it is empty on all interfaces, and on one of `PORTS`."""
    if host:
        return socket.create_server((host, 0))
    while True:
        port = random.choice(PORTS)
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            # no IPv6 on this machine, though Python knows of it
            with contextlib.suppress(OSError):
                return socket.create_server(("", port))


def first_reached(addresses: Sequence[str], reach: Callable[[str], T], seconds: float) -> dict[str, T]:
    """What ``reach`` gave for those of these addresses that it could reach, the one that answered first among them.

    All are tried at once, and ``reach`` has to give up by itself, with OSError.
    """
    found: dict[str, T] = {}
    done = threading.Semaphore(0)

    def attempt(address: str) -> None:
        with contextlib.suppress(OSError):
            found[address] = reach(address)
        done.release()

    for address in addresses:
        threading.Thread(target=attempt, args=(address,), name="kalavai-reach", daemon=True).start()
    until = time.monotonic() + seconds
    for _ in addresses:
        done.acquire(timeout=max(0.0, until - time.monotonic()))
        if found:
            break
    # in the order that was given: those that answered in the same moment
    return {address: found[address] for address in addresses if address in found}


def own_addresses() -> list[str]:
    """At which others may find this machine, IPv4 first: not loopback, not what is good on one cable only."""
    found = []
    for each in _interfaces():
        address = each[1]
        if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified) and (
            address.version == 4 or address.is_global
        ):
            found.append(address)
    return [str(address) for address in sorted(dict.fromkeys(found), key=lambda address: address.version)]


def interface_of(address: str) -> str:
    """The name of this machine's interface that has an address; empty where none has."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return next((name for name, each in _interfaces() if each == wanted), "")


def link_words(links: Sequence[Link], names: Mapping[str, str]) -> str:
    """The ways from one machine, such as "desk 0.3 ms, 940 MB/s; hidden by the gate, 24 ms"."""
    return "; ".join(
        " ".join(filter(None, [names.get(link.target, link.target), _link_words(link)]))
        for link in sorted(links, key=lambda link: names.get(link.target, link.target))
    )


def _link_words(link: Link) -> str:
    facts = [
        "" if link.direct else "by the gate",
        "" if link.rtt_seconds is None else f"{1000 * link.rtt_seconds:.2g} ms",
        "" if link.bytes_per_second is None else _rate(link.bytes_per_second),
    ]
    return ", ".join(filter(None, facts))


def _rate(bytes_per_second: float) -> str:
    """Three digits, as people say it."""
    size, unit = (1e9, "GB/s") if bytes_per_second >= 999.5e6 else (1e6, "MB/s")
    return f"{bytes_per_second / size:.3g} {unit}"


def by_pair(links: Iterable[Link]) -> dict[tuple[str, str], Link]:
    """Links by source and target."""
    return {(link.source, link.target): link for link in links}


def _interfaces() -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    import psutil

    found = []
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(ValueError):
                    found.append((name, ipaddress.ip_address(each.address.partition("%")[0])))
    return found


def _ask_proxy(connection: socket.socket, host: str, port: int) -> None:
    """SOCKS5, without authentication: RFC 1928."""
    name = host.encode()
    connection.sendall(b"\x05\x01\x00")
    if exactly(connection, 2) != b"\x05\x00":
        raise ConnectionError("the link to the gate speaks no SOCKS5")
    connection.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    answer = exactly(connection, 4)
    if answer[1] != 0:
        raise ConnectionError(f"the gate does not lead there any more (SOCKS5 reply {answer[1]})")
    rest = {1: 4, 4: 16}.get(answer[3])
    exactly(connection, (exactly(connection, 1)[0] if rest is None else rest) + 2)


def exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes, no fewer. Raises ConnectionError where it ends before."""
    read = b""
    while len(read) < count:
        if not (more := connection.recv(count - len(read))):
            raise ConnectionError("the other end hung up")
        read += more
    return read


def from_fields(machine: str, said: Mapping[str, Any]) -> Post:
    """A post as its stage's machine told of it."""
    return Post(machine, said["port"], said["host"], tuple(said["addresses"]), said["relay"])
