"""What the commands of this user ask a pool that runs here for, at its socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.gate.desk import COMMANDS
from kalavai_nb.gate.visitor import Visitor
from kalavai_nb.hosting.reach import invited_addresses
from kalavai_nb.lending.holders import held_devices, running

if TYPE_CHECKING:
    from kalavai_nb.hosting.host import HostedPool

Fields = dict[str, Any]
# what an admin who comes by the gate can ask for as well
_OF_THE_GATE = ("invite", "revoke", "members", "snapshot")


class Desk:
    """Answers one question at a time."""

    def __init__(self, pool: HostedPool) -> None:
        self._pool = pool
        self._owner = Visitor(pool.gate)
        self._owner.name = "its owner"
        self._owner.role = "admin"
        self._own: dict[str, Callable[[Fields], Awaitable[Fields]]] = {
            "status": self._status,
            "leave": self._leave,
            "expose": self._expose,
            "hide": self._hide,
        }

    async def answer(self, asked: Fields) -> Fields:
        """Raises KalavaiError where it cannot be done."""
        op = str(asked.get("op"))
        if op in _OF_THE_GATE:
            return await COMMANDS[op][1](self._pool.gate, self._owner, asked)
        if op not in self._own:
            raise OptionError(f"{op[:40]!r} is nothing that a pool can be asked for")
        return await self._own[op](asked)

    async def _status(self, asked: Fields) -> Fields:
        """How the pool is; with ``snapshot``, all of it."""
        pool, kept = self._pool, self._pool.kept
        status: Fields = {
            "kind": "hosted",
            "pool": kept.name,
            "pool_id": pool.pool_id,
            "gate": pool.gate.fingerprint,
            "pid": os.getpid(),
            "since": pool.since,
            "port": pool.gate.port,
            "addresses": invited_addresses(kept.public, kept.listen, pool.gate.port),
            "devices": pool.lent.shown(),
            "is_leaving": pool.ending.asked.is_set(),
            "members": sum(not member.revoked for member in kept.members.members),
            "connected": len(pool.gate.connected),
        }
        try:
            snapshot = await pool.snapshot()
            status["held"] = held_devices(snapshot)
            if asked.get("snapshot"):
                status["snapshot"] = snapshot
        except KalavaiError as error:
            status["trouble"] = str(error)
        return status

    async def _leave(self, asked: Fields) -> Fields:
        """End the pool, ``now`` or when what runs has ended; what runs still."""
        try:
            busy = running(await self._pool.snapshot())
        except KalavaiError:
            busy = []
        self._pool.ending.ask(now=bool(asked.get("now")))
        return {"running": busy, "pid": os.getpid(), "grace_seconds": self._pool.lent.grace_seconds}

    async def _expose(self, asked: Fields) -> Fields:
        """A stage of this machine listens at ``port``: members may reach it, by the same number."""
        port = int(asked["port"])
        if not 0 < port < 65536:
            raise OptionError(f"there is no port {port}")
        self._pool.gate.allow(port)
        return {"relay": port}

    async def _hide(self, asked: Fields) -> Fields:
        """Nothing listens there any more."""
        self._pool.gate.forbid(int(asked["port"]))
        return {}
