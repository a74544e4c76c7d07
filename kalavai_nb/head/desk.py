"""What the gate asks of the head beside it: JSON lines over a socket in a directory that only this user can enter."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from kalavai_nb.head.door import Door
from kalavai_nb.snapshot import Snapshot

if TYPE_CHECKING:
    from distributed import Scheduler


class Desk(SchedulerPlugin):
    """Answers ``{"op": "snapshot"}`` and ``{"op": "deny", "names": […]}``."""

    name = "kalavai-desk"

    def __init__(self, path: Path, door: Door, snapshot: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._path, self._door, self._snapshot = path, door, snapshot

    async def start(self, scheduler: Scheduler) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, str(self._path))

    async def close(self) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps(await self._reply(json.loads(line))).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["op"] == "deny":
            self._door.deny(asked["names"])
            return {}
        return Snapshot.from_fields(await self._snapshot()).to_dict()
