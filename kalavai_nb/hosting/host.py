"""A pool on this machine: its gate in this process, and the machine's process with the head and its own devices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import KalavaiError, PoolClosed
from kalavai_nb.gate.gate import Gate, Host
from kalavai_nb.hosting.desk import Desk
from kalavai_nb.hosting.kept import Kept
from kalavai_nb.hosting.reach import invited_addresses
from kalavai_nb.lending.child import MachineProcess, Report
from kalavai_nb.lending.ending import Ending
from kalavai_nb.lending.holders import running
from kalavai_nb.lending.lent import Lent
from kalavai_nb.lending.local_socket import MOST_BYTES, listen
from kalavai_nb.lending.local_socket import NAME as SOCKET
from kalavai_nb.lending.refusals import Refusals
from kalavai_nb.lending.voice import Voice
from kalavai_nb.members import Member
from kalavai_nb.state import Device

if TYPE_CHECKING:
    from kalavai_nb.machine import HeadOrder, Order

DEFAULT_PORT = 7410
START_SECONDS = 120.0
LOG = "machine.log"
_LOOK_SECONDS = 1.0
_HEAD_SECONDS = 5.0
# laptops sleep, and networks fail for a minute
AWAY_SECONDS = 120.0
# of one look, at most: the others are seen in the panel
_MOST_EVENTS = 20
# the head's own certificates, and those of its machine's devices, last as long as the pool's authority does
_OWN_SECONDS = 9 * 365 * 86400.0


class HostedPool:
    """One pool that is kept here, from `start` to the end of `serve`."""

    def __init__(
        self,
        kept: Kept,
        devices: Sequence[Device],
        voice: Voice,
        *,
        users_invite: bool = False,
        idle_seconds: float = 60.0,
        grace_seconds: float = 60.0,
    ) -> None:
        self.kept, self.voice, self.ending = kept, voice, Ending()
        self.lent = Lent(devices, grace_seconds)
        self._refusals, self._is_up = Refusals(self.lent, voice), False
        self.since = time.time()
        self._idle_seconds = idle_seconds
        self._head_address = self._head_desk = ""
        self._changed = asyncio.Event()
        self._seen = time.time()
        self._denials: set[asyncio.Future[dict[str, Any]]] = set()
        self._worker = kept.authority.issue("worker:local", listens=True, seconds=_OWN_SECONDS)
        self._machine = MachineProcess(kept.directory / LOG, self._on_report, self._on_loss, self._head_order)
        self.gate = Gate(
            Host(
                pool=kept.name,
                authority=kept.authority,
                members=kept.members,
                key=kept.gate_key,
                admin_key=kept.admin_key,
                addresses=lambda port: invited_addresses(kept.public, kept.listen, port),
                head_port=self._head_port,
                ask_head=self.ask_head,
                say=lambda text: voice.say(text, "member"),
                stop=self.ending.ask,
                users_invite=users_invite,
                deny=self._deny,
            )
        )

    async def start(self) -> None:
        """Bring it up. Raises KalavaiError where its port cannot be had, or its head does not start."""
        await self._machine.start()
        self._machine.send(self._order())
        await self._open_gate()
        self._desk = await listen(self.kept.directory, Desk(self).answer)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not (self._head_address and self.lent.is_settled()) and not self.ending.asked.is_set():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log = self.kept.directory / LOG
            raise PoolClosed(f"the pool did not start within {START_SECONDS:.0f} s; {log} says more.") from None
        self._refusals.tell()
        self._is_up = True

    async def serve(self) -> None:
        """Say who comes and goes, until it is to end; then let what runs end, for a grace."""
        while not self.ending.asked.is_set():
            await self._tell_events()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ending.asked.wait(), _LOOK_SECONDS)
        await self._drain()

    async def close(self) -> None:
        """End all of it. Idempotent."""
        await self._machine.close()
        await self.gate.close()
        if hasattr(self, "_desk"):
            self._desk.close()
            (self.kept.directory / SOCKET).unlink(missing_ok=True)

    @property
    def pool_id(self) -> str:
        """What the pool is called among all pools."""
        return self._worker.pool_id

    async def snapshot(self) -> dict[str, Any]:
        """The whole pool now, as `Snapshot.to_dict` has it. Raises KalavaiError where the head does not answer."""
        return await self.ask_head({"op": "snapshot"})

    async def ask_head(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the head answers at its desk. Raises PoolClosed where it does not."""
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._head_desk, limit=MOST_BYTES)
                try:
                    writer.write(json.dumps(question).encode() + b"\n")
                    answer: dict[str, Any] = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError):
            raise PoolClosed(
                "the head of the pool does not answer at this moment; it may be starting: ask again."
            ) from None
        return answer

    # what the machine's process says

    def _on_report(self, report: Report) -> None:
        if report.get("address"):
            self._head_address, self._head_desk = str(report["address"]), str(report["desk"])
        if isinstance(report.get("devices"), dict):
            self.lent.hear(report["devices"])
            # until all is tried, a worker may fail and start a second later
            if self._is_up:
                self._refusals.tell()
        self._changed.set()

    def _on_loss(self, why: str) -> None:
        self._head_address = ""
        self.lent.forget()
        self.voice.say(f"{why}; it is started again", "machine")
        # all devices are wanted again, as before
        self._machine.send(self._order())

    def _head_port(self) -> int:
        return int(self._head_address.rpartition(":")[2] or 0)

    def _deny(self, names: list[str]) -> None:
        """Let the head hang up on members who were revoked. A head that starts later is told of them as it starts."""
        task = asyncio.ensure_future(self.ask_head({"op": "deny", "names": names}))
        self._denials.add(task)
        task.add_done_callback(self._denied)

    def _denied(self, task: asyncio.Future[dict[str, Any]]) -> None:
        self._denials.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.voice.say(f"who was revoked could not be told to the head: {error}", "note")

    # inside

    def _head_order(self) -> HeadOrder:
        identity = self.kept.authority.issue("head", listens=True, seconds=_OWN_SECONDS)
        return {
            "pool": self.kept.name,
            "host": "127.0.0.1",
            "port": 0,
            "idle_seconds": self._idle_seconds,
            "away_seconds": AWAY_SECONDS,
            "identity": asdict(identity),
            "denied": [member.name for member in self.kept.members.members if _is_unwelcome(member)],
        }

    def _order(self) -> Order:
        devices, leaving = self.lent.order()
        return {
            "head": None,
            "address": "",
            "identity": asdict(self._worker),
            "devices": [asdict(device) for device in devices],
            "contacts": {},
            "leaving": {id: dict(each) for id, each in leaving.items()},
            "limits": {},
            "proxy": 0,
            "agent": str(self.kept.directory / SOCKET),
            "listens": True,
            "cwd": os.getcwd(),
            "measure": True,
        }

    async def _open_gate(self) -> None:
        kept = self.kept
        try:
            await self.gate.start(kept.listen, kept.port or DEFAULT_PORT)
        except OSError as error:
            if kept.port:
                raise KalavaiError(
                    f"port {kept.port} of {kept.listen}, for the pool {kept.name}, cannot be had ({error.strerror}): "
                    "end what listens there, or say another --port or --listen (invites that are out lead here)."
                ) from None
            await self.gate.start(kept.listen, 0)
        # where it was told to listen, and could
        kept.port = self.gate.port
        kept.save()

    async def _tell_events(self) -> None:
        with contextlib.suppress(KalavaiError):
            snapshot = await self.snapshot()
            fresh = [event for event in snapshot["events"] if event["time"] > self._seen][-_MOST_EVENTS:]
            for event in fresh:
                self._seen = event["time"]
                self.voice.say(event["text"], event["kind"])

    async def _drain(self) -> None:
        grace = self.lent.grace_seconds
        self.lent.end("the pool ends", grace)
        busy = await self._running()
        if not busy or self.ending.now.is_set():
            return
        self.voice.say("\n".join(busy), "running")
        self.voice.say(f"what runs may end within {grace:.0f} s; Ctrl-C again ends it now", "leaving")
        self._machine.send(self._order())

        async def is_over() -> bool:
            return not await self._running()

        if not await self.ending.drain(grace, is_over):
            left = await self._running()
            self.voice.say(f"ended while something ran: {'; '.join(left)}" if left else "ended", "leaving")

    async def _running(self) -> list[str]:
        with contextlib.suppress(KalavaiError):
            return running(await self.snapshot())
        return []


def _is_unwelcome(member: Member) -> bool:
    return member.revoked or 0 < member.until < time.time()
