"""A gate: what members, admins and holders of an invite ask for, and what a link's proxy answers to who dials by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kalavai_nb.gate.desk import COMMANDS, answer
from kalavai_nb.gate.gate import Gate, Host
from kalavai_nb.members import Members
from kalavai_nb.roads import _ask_proxy
from kalavai_nb.security import Authority, new_key, public_pem

from .mutation import MOST_BYTES, Mutator

NOW = 1.7e9
MINE, OTHER = public_pem(new_key()), public_pem(new_key())
ASKED: dict[str, dict[str, Any]] = {
    "enrol": {"public_key": MINE, "label": "ada"},
    "renew": {"public_key": MINE},
    "forget": {},
    "snapshot": {},
    "invite": {"role": "user", "seconds": 600, "uses": 2, "stay_seconds": 0},
    "revoke": {"who": "ada"},
    "members": {},
    "stop": {"now": True},
}
ROLES = ("", "invite", "user", "worker", "admin")
# members are kept: so many, then the pool begins anew
FEW = 50


@dataclass
class Pieces:
    """What the other end has sent."""

    pieces: list[bytes]

    async def read(self, most: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@dataclass
class Written:
    """What the gate has answered."""

    content: bytes = b""

    def write(self, content: bytes) -> None:
        self.content += content


@dataclass
class Process:
    """One command over a connection, without the connection."""

    command: str | None
    stdin: Pieces
    stdout: Written = field(default_factory=Written)
    status: int | None = None

    def exit(self, status: int) -> None:
        self.status = status


@dataclass
class Visitor:
    """Somebody who has shown a key."""

    name: str
    member: str
    role: str


class Commands:
    """Every question has one line as its answer, which is JSON."""

    name = "commands"

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.authority = Authority("lab")
        self._begin()

    def _begin(self) -> None:
        async def ask_head(asked: dict[str, Any]) -> dict[str, Any]:
            return {"devices": 1}

        self.host = Host(
            pool="lab",
            authority=self.authority,
            members=Members(),
            key=new_key(),
            admin_key="",
            addresses=lambda port: ["10.0.0.1:5000"],
            head_port=lambda: 0,
            ask_head=ask_head,
            say=self._said,
            users_invite=True,
            clock=lambda: NOW,
        )
        self.gate = Gate(self.host)
        made = self.gate.invite("user", 600, 1000)
        self.invite = made["id"]
        self.member = self.host.members.enrol(self.invite, "a key", "ada", NOW).id

    def _said(self, line: str) -> None:
        assert line.isprintable(), "a terminal would obey this line of the log"
        assert len(line) < 20_000

    def make(self, mutator: Mutator) -> tuple[str, str, bytes, int]:
        command = mutator.choose(list(COMMANDS))
        fields = json.dumps(mutator.value(ASKED[command])).encode("utf-8", "surrogatepass") + b"\n"
        if mutator.happens(0.3):
            fields = mutator.bytes([fields])
        if mutator.happens(0.1):
            command = mutator.text(list(COMMANDS))
        role = mutator.choose(COMMANDS[command][0]) if command in COMMANDS and mutator.happens(0.8) else None
        return role if role is not None else mutator.choose(ROLES), command, fields[:MOST_BYTES], mutator.choose((1, 3))

    def take(self, given: tuple[str, str, bytes, int]) -> str:
        role, command, content, pieces = given
        if len(self.host.members.members) > FEW or len(self.host.members.invitations) > FEW:
            self._begin()
        size = max(1, len(content) // pieces)
        process: Any = Process(command, Pieces([content[at : at + size] for at in range(0, len(content), size)]))
        visitor: Any = Visitor(self.invite if role == "invite" else "ada", self.member, role)
        self.loop.run_until_complete(answer(self.gate, visitor, process))
        assert process.status == 0
        line = process.stdout.content
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        reply = json.loads(line, parse_constant=_no_number)
        assert isinstance(reply, dict)
        if command not in COMMANDS or role not in COMMANDS[command][0]:
            assert list(reply) == ["error"]
        if "error" in reply:
            assert reply["error"].isprintable()
            return "refused"
        return "done"


def _no_number(said: str) -> None:
    raise AssertionError(f"{said} is no JSON")


class Proxy:
    """Somebody who listens where a link's proxy should."""

    name = "proxy"
    valid = (
        b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6),
        b"\x05\x00" + b"\x05\x00\x00\x03\x09localhost" + bytes(2),
        b"\x05\x00" + b"\x05\x00\x00\x04" + bytes(18),
        b"\x05\x00" + b"\x05\x05\x00\x01" + bytes(6),
    )

    def make(self, mutator: Mutator) -> bytes:
        return mutator.bytes(self.valid)

    def take(self, given: bytes) -> str:
        theirs, ours = socket.socketpair()
        with theirs, ours:
            theirs.sendall(given)
            theirs.shutdown(socket.SHUT_WR)
            try:
                _ask_proxy(ours, "relay", 40000)
            except ConnectionError:
                return "refused"
            return "connected"


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    surface = Commands()
    yield surface
    surface.loop.close()


@contextlib.contextmanager
def proxy() -> Iterator[Proxy]:
    yield Proxy()
