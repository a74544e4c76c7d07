"""What the owner's commands, and the workers of this machine, ask the agent for at its socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.lending.holders import held_devices, running
from kalavai_nb.lending.kept import Lends
from kalavai_nb.lending.limits import check

if TYPE_CHECKING:
    from kalavai_nb.lending.agent import Agent

Fields = dict[str, Any]


class Desk:
    """Answers one question at a time."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._ops: dict[str, Callable[[Fields], Awaitable[Fields]]] = {
            "status": self._status,
            "limits": self._limits,
            "leave": self._leave,
            "expose": self._expose,
            "hide": self._hide,
        }

    async def answer(self, asked: Fields) -> Fields:
        """Raises KalavaiError where it cannot be done."""
        op = str(asked.get("op"))
        if op not in self._ops:
            raise OptionError(f"{op[:40]!r} is nothing that an agent can be asked for")
        return await self._ops[op](asked)

    async def _status(self, asked: Fields) -> Fields:
        """What is lent, how the way to the pool is, and who runs what on which device since when."""
        agent, link = self._agent, self._agent.link
        status: Fields = {
            "kind": "joined",
            "pool": link.membership.pool,
            "pool_id": link.membership.pool_id,
            "member": link.membership.member,
            "pid": os.getpid(),
            "since": agent.since,
            "link": {"up": link.is_up, "since": agent.link_since, "why": link.why},
            "devices": agent.lent.shown(),
            "limits": agent.limits.to_fields(),
            "limits_text": agent.limits.describe(),
            "is_leaving": agent.ending.asked.is_set(),
        }
        try:
            status["held"] = held_devices(await agent.snapshot(), agent.ids)
        except KalavaiError as error:
            status["trouble"] = str(error)
        return status

    async def _limits(self, asked: Fields) -> Fields:
        """Change the limits in ``changes``, as the command line has them; what they are now."""
        agent = self._agent
        changes = asked.get("changes") or {}
        if changes:
            limits = agent.limits.updated(changes)
            check(limits, agent.lent.devices)
            agent.owner.check(limits)
            directory = agent.link.membership.directory
            replace(Lends.load(directory), limits=limits).save(directory)
            agent.limit(limits)
            agent.voice.say(f"limits: {limits.describe() or 'none'}", "limits")
        return {"limits": agent.limits.to_fields(), "limits_text": agent.limits.describe()}

    async def _leave(self, asked: Fields) -> Fields:
        """End, ``now`` or when what runs has ended; with ``forget``, for good. What runs still."""
        agent = self._agent
        try:
            busy = running(await agent.snapshot(), agent.ids)
        except KalavaiError:
            busy = []
        agent.is_forgotten = agent.is_forgotten or bool(asked.get("forget"))
        agent.ending.ask(now=bool(asked.get("now")))
        return {"running": busy, "pid": os.getpid(), "grace_seconds": agent.limits.grace_seconds}

    async def _expose(self, asked: Fields) -> Fields:
        """A stage of this machine listens at ``port``: the number by which the gate leads there."""
        port = int(asked["port"])
        if not 0 < port < 65536:
            raise OptionError(f"there is no port {port}")
        return {"relay": await self._agent.link.expose(port)}

    async def _hide(self, asked: Fields) -> Fields:
        """Nothing listens there any more."""
        await self._agent.link.hide(int(asked["port"]))
        return {}
