"""What members and admins ask a gate for: a command, one JSON line in, one JSON line out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import asyncssh

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.fields import number, text, whole
from kalavai_nb.gate.keys import MOST_LINE_BYTES, public_text_of

if TYPE_CHECKING:
    from kalavai_nb.gate.gate import Gate
    from kalavai_nb.gate.visitor import Visitor

Fields = dict[str, Any]
Command = Callable[["Gate", "Visitor", Fields], Awaitable[Fields]]

# the keys of lists that people see have no business there
_NOT_SHOWN = ("key",)
_MOST_LABEL = 64
_QUESTION_SECONDS = 30


async def answer(gate: Gate, visitor: Visitor, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Answer one command. What cannot be done is ``{"error": sentence}``."""
    command = str(process.command or "")
    try:
        # before anything else: whoever still writes would not hear an answer
        async with asyncio.timeout(_QUESTION_SECONDS):
            asked = await _line(process)
        wanted = COMMANDS.get(command)
        if wanted is None or visitor.role not in wanted[0]:
            raise OptionError(f"{command[:40]!r} is nothing that a connection of role {visitor.role!r} can ask for.")
        reply = await wanted[1](gate, visitor, asked)
    except KalavaiError as error:
        reply = {"error": str(error)}
    except TimeoutError:
        reply = {"error": f"the question took longer than {_QUESTION_SECONDS} s."}
    except OSError as error:
        reply = {"error": f"the pool cannot keep what it has to ({error.strerror or type(error).__name__})."}
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        reply = {"error": f"the question cannot be understood ({type(error).__name__})."}
    process.stdout.write(json.dumps(reply).encode() + b"\n")
    process.exit(0)


async def _line(process: asyncssh.SSHServerProcess[bytes]) -> Fields:
    content = b""
    while not content.endswith(b"\n"):
        piece = await process.stdin.read(1 << 16)
        content += piece
        if len(content) > MOST_LINE_BYTES:
            raise OptionError("the question is too long.")
        if not piece:
            break
    fields = json.loads(content or b"{}")
    if not isinstance(fields, dict):
        raise OptionError("a question is a JSON object.")
    return fields


async def _enrol(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """Become a member, with a key of one's own: ``public_key`` (PEM), ``label``."""
    host = gate.host
    public_key = str(asked["public_key"])
    # what cannot be certified must not use the invite up
    host.authority.certify(public_key, "nobody", listens=False)
    label = " ".join(text(asked.get("label", "")).split())[:_MOST_LABEL] or "somebody"
    member = host.members.enrol(visitor.name, public_text_of(public_key), label, host.clock())
    host.say(f"{member.label} has joined as {member.role} ({member.id}, by {member.invite})")
    names = {"member": member.id, "role": member.role, "until": member.until}
    return {**names, "pool": host.pool, **gate.certificate(member, public_key)}


async def _renew(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """A new certificate for the key that the member has."""
    member = gate.host.members.member(visitor.member)
    public_key = str(asked["public_key"])
    if member is None or public_text_of(public_key) != member.key:
        raise OptionError("a certificate is given for the member's own key only.")
    return gate.certificate(member, public_key)


async def _forget(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """The member leaves for good."""
    gate.host.members.forget(visitor.member)
    gate.host.say(f"{visitor.name} has left for good")
    return {}


async def _snapshot(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """The pool now, as the head sees it."""
    return await gate.host.ask_head({"op": "snapshot"})


async def _invite(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """A new invite: ``role``, ``seconds``, ``uses``, ``stay_seconds``."""
    if visitor.role == "user" and not gate.host.users_invite:
        raise OptionError(
            "in this pool only whoever opened it invites others: kalavai-nb invite on the machine where it started, "
            "or pool.invite() in the notebook that did. kalavai-nb start --users-invite lets all users invite."
        )
    uses, seconds, stay_seconds = whole(asked["uses"]), number(asked["seconds"]), number(asked.get("stay_seconds", 0))
    reply = gate.invite(text(asked["role"]), seconds, uses, stay_seconds)
    gate.host.say(f"{visitor.name} made invite {reply['id']} for {uses} × {reply['role']}")
    return reply


async def _revoke(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """Let nobody called ``who`` in any more."""
    who = text(asked["who"])
    gone = gate.revoke(who)
    gate.host.say(f"revoked {who}: {', '.join(f'{m.label} ({m.id})' for m in gone) or 'nobody had come by it'}")
    return {"revoked": [_shown(member) for member in gone]}


async def _members(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """Who is a member, who is connected, and which invites are out."""
    connected, members = gate.connected, gate.host.members
    return {
        "members": [{**_shown(member), "connected": connected.get(member.id, 0)} for member in members.members],
        "invites": [_shown(invitation) for invitation in members.invitations],
        "time": gate.host.clock(),
    }


async def _stop(gate: Gate, visitor: Visitor, asked: Fields) -> Fields:
    """End the pool; ``now``: without waiting for anything."""
    gate.host.stop(bool(asked.get("now")))
    return {}


def _shown(noun: Any) -> Fields:
    return {name: value for name, value in asdict(noun).items() if name not in _NOT_SHOWN}


COMMANDS: dict[str, tuple[tuple[str, ...], Command]] = {
    "enrol": (("invite",), _enrol),
    "renew": (("user", "worker"), _renew),
    "forget": (("user", "worker"), _forget),
    "snapshot": (("user", "worker", "admin"), _snapshot),
    "invite": (("user", "admin"), _invite),
    "revoke": (("admin",), _revoke),
    "members": (("admin",), _members),
    "stop": (("admin",), _stop),
}
