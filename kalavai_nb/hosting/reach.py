"""The addresses at which other machines may find this one."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

from kalavai_nb.errors import OptionError
from kalavai_nb.invites import split_address

LOOPBACK = "127.0.0.1"
# an invite has to fit into a chat message
MOST_ADDRESSES = 6
# a resolver that takes longer has no answer
_RESOLVE_SECONDS = 5.0
# what containers and virtual machines of this machine talk on: nobody else gets there
_INNER = re.compile(r"^(docker|br-|veth|virbr|lxc|lxdbr|cni|flannel|podman)")


def public_addresses(texts: Iterable[str], port: int) -> list[str]:
    """``HOST[:PORT]``, each as ``host:port``, with ``port`` where none is said. Raises OptionError."""
    return [_with_port(text.strip(), port) for text in texts]


def own_addresses(listen: str, port: int) -> list[str]:
    """Where a program that listens on ``listen`` can be reached, nearest to what others use first."""
    return [_joined(host, port) for host in (_own_hosts(listen) or [LOOPBACK])]


def invited_addresses(public: Sequence[str], listen: str, port: int) -> list[str]:
    """What an invite says: the public addresses first, then those that this machine knows of itself."""
    found = dict.fromkeys([*public_addresses(public, port), *own_addresses(listen, port)])
    return list(found)[:MOST_ADDRESSES]


async def unknown_names(public: Sequence[str]) -> list[str]:
    """Those of the public addresses that this machine finds nowhere at this moment; others may."""
    hosts = list(dict.fromkeys(split_address(address)[0] for address in public_addresses(public, 1)))
    are_known = await asyncio.gather(*map(_is_known, hosts))
    return [host for host, is_known in zip(hosts, are_known, strict=True) if not is_known]


async def _is_known(host: str) -> bool:
    try:
        await asyncio.wait_for(asyncio.get_running_loop().getaddrinfo(host, None), _RESOLVE_SECONDS)
    except (socket.gaierror, UnicodeError, TimeoutError):
        return False
    return True


def is_only_here(listen: str) -> bool:
    """Whether nobody else can reach what listens there."""
    return all(ipaddress.ip_address(host).is_loopback for host in _own_hosts(listen) or [LOOPBACK])


def _own_hosts(listen: str) -> list[str]:
    try:
        bound = ipaddress.ip_address(listen)
    except ValueError:
        raise OptionError(
            f"--listen {listen} is no address of a network interface: wanted one such as 0.0.0.0 (all) or 192.168.1.5."
        ) from None
    if not bound.is_unspecified:
        return [listen]
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    hosts = [
        address
        for name, entries in psutil.net_if_addrs().items()
        if name in up and not _INNER.match(name)
        for entry in entries
        if (address := _usable(entry.address, bound.version)) is not None
    ]
    return sorted(hosts, key=lambda host: not ipaddress.ip_address(host).is_global)


def _usable(text: str, version: int) -> str | None:
    """An address of an interface that others could dial."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    is_other = address.version != version or address.is_loopback or address.is_link_local or address.is_multicast
    return None if is_other else str(address)


def _with_port(text: str, port: int) -> str:
    host, said = text, str(port)
    if bracketed := re.fullmatch(r"\[([^\]]+)\](?::(.*))?", text):
        host, said = bracketed[1], bracketed[2] if bracketed[2] is not None else said
    elif text.count(":") == 1:
        host, said = text.split(":")
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", host) or not said.isdecimal() or not 0 < int(said) < 65536:
        raise OptionError(
            f"--public {text} cannot be meant: wanted a host name or an address, with a port where it is another one "
            f"than {port}, such as my.example.org or 203.0.113.7:{port}."
        )
    return _joined(host, int(said))


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
