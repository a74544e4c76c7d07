"""The stages of all owners on one worker: their processes, and what they say on its way home."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kalavai_nb.identity import Identity
from kalavai_nb.roads import LOOPBACK, Site
from kalavai_nb.worker.child import Child, warm_for_models
from kalavai_nb.worker.wire import Message, messages, packed

Send = Callable[[Message], None]


class Stages:
    """Processes of stages by name; ``send`` gets events with what they say, and how they ended."""

    def __init__(
        self, directory: Path, newer_identity: Path, site: Site, identity: Identity, environment: dict[str, str]
    ) -> None:
        self._directory, self._newer_identity, self._environment = directory, newer_identity, environment
        self.site, self._identity = site, identity
        self._stages: dict[str, tuple[str, _Stage | None]] = {}

    async def start(
        self, owner: str, stage: str, key: str, instead_of: str, visible: dict[str, str], send: Send
    ) -> None:
        """Start the process of a stage when the one called ``instead_of`` is gone, and pass on all that it says."""
        # known from now on, so that it can be ended before there is a process
        self._stages[stage] = (owner, None)
        try:
            await asyncio.gather(self.end(stage=instead_of), warm_for_models())
            if stage not in self._stages:
                raise RuntimeError("was ended before it started")
            log = self._directory / f"stage-{secrets.token_hex(4)}.log"
            arguments = (self._identity, str(self._newer_identity), self.site.door, self.site.proxy, key)
            process = _Stage(arguments, {**self._environment, **visible}, log)
            self._stages[stage] = (owner, process)
            await process.converse(send, self.site)
        except Exception as error:  # its owner waits for a word
            send({"said": "died", "how": str(error), "tail": "", "out_of_memory": False})
        self._stages.pop(stage, None)

    def tell(self, stage: str, order: Message) -> None:
        """Pass an order on. One to a stage that is gone is dropped: its end was an event."""
        process = self._stages.get(stage, ("", None))[1]
        if process:
            process.write(order)

    async def end(self, *, stage: str = "", owner: str = "", everything: bool = False) -> None:
        """End the one of this name, those of an owner, or all."""
        chosen = [name for name, (who, _) in self._stages.items() if everything or name == stage or who == owner]
        processes = [self._stages[name][1] for name in chosen]
        for name, process in zip(chosen, processes, strict=True):
            if process is None:
                del self._stages[name]
        await asyncio.gather(*(process.child.kill() for process in processes if process))


class _Stage:
    """One process, with the wire to it."""

    def __init__(self, arguments: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
        from kalavai_nb.worker.stage import enter

        self._log = log
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.child = Child(enter, (theirs, *arguments), environment, log)
        theirs.close()
        self._writer: asyncio.StreamWriter | None = None
        self._early: list[bytes] = []

    async def converse(self, send: Send, site: Site) -> None:
        """Send on all that the process says, with the ways that lead to it from elsewhere, then its end."""
        port = 0
        reader, self._writer = await asyncio.open_connection(sock=self._ours)
        for order in self._early:
            self._writer.write(order)
        async for said in messages(reader):
            if said["said"] == "started":
                port = said["port"]
                said.update(host=site.door or LOOPBACK, addresses=site.addresses(), relay=await site.expose(port))
            send(said)
        ending = await self.child.kill()
        self._writer.close()
        send({"said": "died", "how": str(ending), "tail": ending.tail, "out_of_memory": ending.out_of_memory})
        self._log.unlink(missing_ok=True)
        if port:
            await site.hide(port)

    def write(self, order: Message) -> None:
        if self._writer is None:
            self._early.append(packed(order))
            return
        # where it is gone, its end says so
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._writer.write(packed(order))
