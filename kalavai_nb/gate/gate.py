"""Who is here, and what they may: the SSH server of a pool."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from kalavai_nb.errors import KalavaiError
from kalavai_nb.gate.desk import answer
from kalavai_nb.gate.keys import AGREED, fingerprint, invite_key, public_text, ssh_key
from kalavai_nb.gate.visitor import Visitor
from kalavai_nb.invites import Invite
from kalavai_nb.members import Member, Members
from kalavai_nb.security import Authority

HELLO_SECONDS = 15
INVITED_SECONDS = 60
# connections of which nothing is known yet; with more, the oldest of the origin that has the most is hung up on
MOST_STRANGERS = 64
# ports of this machine that members may reach, beside those that the gate itself has opened
MOST_STAGES = 4096
# what one connection asks at a time; each may be as long as a line
MOST_QUESTIONS = 16
# lines about strangers, each minute: a flood of them is not to fill the disk
MOST_REFUSALS = 200
_REFUSALS_SECONDS = 60


@dataclass
class Host:
    """What a gate needs of the pool behind it.

    ``head_port`` is where the head listens on this machine (0: nowhere at this moment), ``ask_head`` what it answers,
    ``say`` writes a line for whoever looks after the pool, ``stop`` ends it all.
    """

    pool: str
    authority: Authority
    members: Members
    key: str
    admin_key: str
    addresses: Callable[[int], list[str]]
    head_port: Callable[[], int]
    ask_head: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    say: Callable[[str], None]
    stop: Callable[[bool], None] = lambda now: None
    # whether users may bring others in
    users_invite: bool = False
    # whether the pool comes back by itself where its processes ended
    stays: bool = True
    deny: Callable[[list[str]], None] = lambda names: None
    clock: Callable[[], float] = field(default=time.time)


class Gate:
    """The gate of one pool."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._key = ssh_key(host.key)
        self.fingerprint = fingerprint(self._key)
        self.admin = public_text(ssh_key(host.admin_key)) if host.admin_key else ""
        self.port = 0
        # in the order in which they came
        self._visitors: dict[Visitor, None] = {}
        self._relays: set[int] = set()
        self._stages: OrderedDict[int, None] = OrderedDict()
        self._refused, self._refused_since = 0, 0.0
        self._server: asyncssh.SSHAcceptor | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, listen: str, port: int) -> None:
        """Listen. Raises OSError where that port cannot be had."""
        self._server = await asyncssh.create_server(
            lambda: Visitor(self),
            listen,
            port,
            server_host_keys=[self._key],
            process_factory=self._answer,
            encoding=None,
            login_timeout=HELLO_SECONDS,
            allow_scp=False,
            agent_forwarding=False,
            x11_forwarding=False,
            # asyncssh would look for files of this user
            authorized_client_keys=None,
            **AGREED,
        )
        self.port = self._server.get_port()
        self._watch = asyncio.create_task(self._end_memberships())

    async def close(self) -> None:
        """Hang up on all, and listen no more. Idempotent."""
        if self._watch:
            self._watch.cancel()
        if self._server:
            self._server.close()
            for visitor in list(self._visitors):
                visitor.hang_up()
            await self._server.wait_closed()
            self._server = None

    def invite(self, role: str, seconds: float, uses: int = 1, stay_seconds: float = 0.0) -> dict[str, Any]:
        """A new invite, as text, and what is known of it. Raises OptionError."""
        host, now = self.host, self.host.clock()
        addresses = tuple(host.addresses(self.port))

        def text_of(secret: str) -> Invite:
            return Invite(host.pool, addresses, self.fingerprint, secret, role, now + seconds)

        invitation, secret = host.members.invite(
            role,
            lambda secret: public_text(invite_key(text_of(secret))),
            now=now,
            seconds=seconds,
            uses=uses,
            stay_seconds=stay_seconds,
        )
        known = {"id": invitation.id, "role": role, "expires": invitation.expires, "uses": uses}
        return {"invite": text_of(secret).encode(), **known, "stay_seconds": stay_seconds}

    def revoke(self, who: str) -> list[Member]:
        """Let nobody of this name in any more, and hang up on those who are here. Raises OptionError."""
        gone = self.host.members.revoke(who)
        self.host.deny([member.name for member in gone])
        for member in gone:
            self.hang_up(member.id)
        return gone

    def hang_up(self, member: str) -> None:
        """Close the connections of this member."""
        for visitor in [v for v in self._visitors if v.member == member]:
            visitor.hang_up()

    @property
    def connected(self) -> dict[str, int]:
        """How many connections each member has."""
        found: dict[str, int] = {}
        for visitor in self._visitors:
            if visitor.member:
                found[visitor.member] = found.get(visitor.member, 0) + 1
        return found

    # ports of this machine

    def allow(self, port: int) -> None:
        """Members may reach this port of this machine: a stage listens there."""
        self._stages[port] = None
        self._stages.move_to_end(port)
        while len(self._stages) > MOST_STAGES:
            self._stages.popitem(last=False)

    def forbid(self, port: int) -> None:
        """Nothing of the pool listens there any more."""
        self._stages.pop(port, None)

    def is_allowed(self, port: int) -> bool:
        """Whether members may reach it."""
        return port in self._relays or port in self._stages

    def open_relay(self, port: int) -> None:
        self._relays.add(port)

    def close_relay(self, port: int) -> None:
        self._relays.discard(port)

    # visitors

    def enter(self, visitor: Visitor) -> None:
        """A connection was made. A crowd at the door keeps out none but itself."""
        strangers = [each for each in self._visitors if not each.is_known]
        if len(strangers) >= MOST_STRANGERS:
            [(crowd, _)] = Counter(each.origin for each in strangers).most_common(1)
            next(each for each in strangers if each.origin == crowd).hang_up()
        self._visitors[visitor] = None

    def leave(self, visitor: Visitor) -> None:
        self._visitors.pop(visitor, None)

    def refuse(self, text: str) -> None:
        """Somebody was refused: said, where that is not said all the time."""
        now = time.monotonic()
        if now - self._refused_since > _REFUSALS_SECONDS:
            if (more := self._refused - MOST_REFUSALS) > 0:
                self.host.say(f"{more} more were refused, within {_REFUSALS_SECONDS} s")
            self._refused, self._refused_since = 0, now
        self._refused += 1
        if self._refused <= MOST_REFUSALS:
            self.host.say(text)

    def admit(self, visitor: Visitor) -> None:
        """A member has come. A machine that comes again has lost its old connection, and may not have noticed."""
        for other in [v for v in self._visitors if v.member == visitor.member and v is not visitor]:
            # what one member may have open is counted once, however many connections to the gate it has
            visitor.channels = other.channels
            if visitor.role == "worker":
                other.hang_up()

    # inside

    async def _answer(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        visitor: Visitor = process.get_extra_info("visitor")
        if visitor.questions >= MOST_QUESTIONS:
            process.stdout.write(b'{"error": "too many questions at a time."}\n')
            process.exit(0)
            return
        visitor.questions += 1
        try:
            await answer(self, visitor, process)
        finally:
            visitor.questions -= 1

    async def _end_memberships(self) -> None:
        """Hang up on members whose time is over, when it is."""
        members = self.host.members
        while True:
            await asyncio.sleep(1)
            now = self.host.clock()
            # whoever came by an invite has become a member by now, or has nothing to do here
            for visitor in [v for v in self._visitors if v.role == "invite"]:
                if time.monotonic() - visitor.since > INVITED_SECONDS:
                    visitor.hang_up()
            for id in self.connected:
                member = members.member(id)
                try:
                    if member:
                        member.check(now)
                        continue
                except KalavaiError:
                    self.host.deny([member.name] if member else [])
                # one that has left for good is nobody, and cannot be revoked
                self.hang_up(id)

    def certificate(self, member: Member, public_key: str) -> dict[str, Any]:
        """What a member needs beside its key, for as long as its certificate is good."""
        certificate = self.host.authority.certify(public_key, member.name, listens=member.role == "worker")
        addresses = self.host.addresses(self.port)
        may_invite = self.host.users_invite and member.role == "user"
        said = {"certificate": certificate, "ca": self.host.authority.ca}
        return {**said, "addresses": addresses, "may_invite": may_invite, "stays": self.host.stays}
