"""One connection to a gate: who it is, and what it may reach."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncssh

from kalavai_nb.gate.channels import Channels
from kalavai_nb.gate.keys import ADMIN, HEAD, RELAY, public_text
from kalavai_nb.members import Refused

if TYPE_CHECKING:
    from kalavai_nb.gate.gate import Gate

LOOPBACK = "127.0.0.1"
# of one machine: workers of its devices, and stages of models on them
MOST_RELAYS = 512
# what is said by a peer goes into a line for people
_MOST_SHOWN = 40
# an address of IPv6 is one of a network that whoever has it has the whole of
_V6_NETWORK = 64


class Visitor(asyncssh.SSHServer):
    """Its roles: "invite" (may become a member), "user", "worker", "admin"; empty until its key is proven."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.origin = self._peer = ""
        self._claims = ""
        self._reason = ""
        self.name = self.member = self.role = ""
        self.is_known = False
        self.since = time.monotonic()
        self.questions = 0
        self._relays: set[int] = set()
        self.channels = Channels(lambda text: gate.refuse(f"{self.name} ({self.member or self.role}) {text}"))

    # SSH's questions

    def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
        self._connection = connection
        peer = connection.get_extra_info("peername") or ("?", 0)
        self.origin = origin_of(str(peer[0]))
        self._peer = f"{peer[0]}:{peer[1]}"
        connection.set_extra_info(visitor=self)
        self._gate.enter(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._gate.leave(self)
        for port in list(self._relays):
            self._forget_relay(port)
        if not self.is_known:
            claims = f" as {self._claims[:_MOST_SHOWN]!r}" if self._claims else ""
            reason = self._reason or "it did not show a key that is known here"
            self._gate.refuse(f"refused {self._peer}{claims}: {reason}")
        elif self.member:
            self._gate.host.say(f"{self.name} ({self.member}) is disconnected")

    def begin_auth(self, username: str) -> bool:
        self._claims = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether this key is the one of whoever it claims to be. That it has the private half is shown to asyncssh."""
        members, now = self._gate.host.members, self._gate.host.clock()
        shown = public_text(key)
        if username == ADMIN:
            return bool(self._gate.admin) and hmac.compare_digest(shown, self._gate.admin)
        known: Any = members.invitation(username) or members.member(username)
        if known is None or not hmac.compare_digest(known.key.encode(), shown.encode()):
            return False
        try:
            known.check(now)
        except Refused as refused:
            self._reason = str(refused)
            self._connection.send_auth_banner(f"{refused}\n")
            return False
        return True

    def auth_completed(self) -> None:
        username = self._claims
        member = self._gate.host.members.member(username)
        self.is_known = True
        if username == ADMIN:
            self.name = self.role = ADMIN
        elif member is None:
            self.name, self.role = username, "invite"
        else:
            self.name, self.member, self.role = member.label, member.id, member.role
            self._gate.admit(self)
            self._gate.host.say(f"{self.name} ({self.member}, {self.role}) is connected from {self._peer}")

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """The head, and ports that other members have opened here: nothing else of this machine or its network."""
        if self.role not in ("user", "worker", ADMIN):
            return False
        if dest_host == HEAD and (head := self._gate.host.head_port()):
            return self.channels.forward(LOOPBACK, head)
        if dest_host == RELAY and self._gate.is_allowed(dest_port):
            return self.channels.forward(LOOPBACK, dest_port)
        return False

    def server_requested(self, listen_host: str, listen_port: int) -> Awaitable[Any] | bool:
        """A machine wants to be reached: on loopback, at a port that is free."""
        if self.role != "worker" or listen_port or len(self._relays) >= MOST_RELAYS:
            return False
        return self._listen(listen_host)

    def unix_connection_requested(self, dest_path: str) -> bool:
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        return False

    # inside

    async def _listen(self, listen_host: str) -> asyncssh.SSHListener:
        # port 0 of the other end is, to asyncssh, the same as the one that it gets here
        listener = await self._connection.forward_local_port(LOOPBACK, 0, listen_host, 0)
        port = listener.get_port()
        self._relays.add(port)
        self._gate.open_relay(port)
        return _Relay(listener, self._forget_relay)

    def _forget_relay(self, port: int) -> None:
        # once only: the number may be another member's by now
        if port in self._relays:
            self._relays.discard(port)
            self._gate.close_relay(port)

    def hang_up(self) -> None:
        self._connection.abort()


def origin_of(host: str) -> str:
    """Where a connection comes from, as far as somebody cannot choose it at will: an address, or a network of IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _V6_NETWORK), strict=False))


class _Relay(asyncssh.SSHListener):
    """A port that the gate listens on for a machine. Whatever else listens there once it is closed is nobody's."""

    def __init__(self, listener: asyncssh.SSHListener, on_close: Callable[[int], None]) -> None:
        super().__init__()
        self._listener, self._on_close = listener, on_close

    def get_port(self) -> int:
        return self._listener.get_port()

    def close(self) -> None:
        self._on_close(self.get_port())
        self._listener.close()

    async def wait_closed(self) -> None:
        await self._listener.wait_closed()
