"""The agent of a machine that is lent: it keeps the way to the pool, and the machine's process as its owner wants it.

The machine's process stays warm over all that may happen to the connection: it has no devices while there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import KalavaiError, NotWelcome, PoolClosed
from kalavai_nb.lending.child import MachineProcess, Report
from kalavai_nb.lending.desk import Desk
from kalavai_nb.lending.ending import Ending
from kalavai_nb.lending.holders import running, span
from kalavai_nb.lending.lent import Lent
from kalavai_nb.lending.limits import Limits, lent
from kalavai_nb.lending.local_socket import NAME as SOCKET
from kalavai_nb.lending.local_socket import listen
from kalavai_nb.lending.owner import Owner
from kalavai_nb.lending.refusals import Refusals
from kalavai_nb.lending.voice import Voice
from kalavai_nb.link.connection import Link
from kalavai_nb.link.membership import Membership
from kalavai_nb.places import private_directory
from kalavai_nb.state import Device

if TYPE_CHECKING:
    from kalavai_nb.machine import Order

LOG = "machine.log"
WORK = "work"
_LOOK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0
# what the workers take to end, after their grace
_END_SECONDS = 5.0
WHY_LEAVING = "its owner takes it back"


class Agent:
    """Lends this machine's devices to one pool, from `run` to its end."""

    def __init__(
        self,
        membership: Membership,
        devices: Sequence[Device],
        limits: Limits,
        voice: Voice,
        *,
        outbound_only: bool = False,
    ) -> None:
        self.link = Link(membership, self._on_state)
        self.limits, self.voice, self.ending = limits, voice, Ending()
        self.lent = Lent(devices, limits.grace_seconds)
        self._refusals = Refusals(self.lent, voice)
        self.since = time.time()
        self.link_since = time.time()
        self.is_forgotten = False
        self._outbound_only = outbound_only
        self._directory = membership.directory
        self._ports: dict[str, int] = {}
        self._told: Order | None = None
        self._was_down = self._is_ready = False
        self._refused = ""
        self._changed = asyncio.Event()
        self.owner = Owner(devices, self._changed.set)
        self._machine = MachineProcess(self._directory / LOG, self._on_report, self._on_loss)
        self._desk: asyncio.Server | None = None

    async def run(self) -> None:
        """Lend, until the owner has enough. Raises NotWelcome where the pool refuses this machine for good."""
        self.owner.check(self.limits)
        private_directory(self._directory / WORK)
        self.ending.on_signals()
        try:
            # imports what it needs while the connection is made
            await self._machine.start()
            self._desk = await listen(self._directory, Desk(self).answer)
            await self._connect()
            await self._lend()
            if self._refused:
                raise NotWelcome(self._refused)
            await self._drain()
            if self.is_forgotten:
                await self._forget()
        finally:
            await self._close()
        self.voice.say("this machine is lent no more", "ended")

    async def snapshot(self) -> dict[str, Any]:
        """The whole pool now, as `Snapshot.to_dict` has it. Raises KalavaiError where it does not answer."""
        return await self.link.ask("snapshot")

    def limit(self, limits: Limits) -> None:
        """These limits hold from now on."""
        self.limits = limits
        self.lent.grace_seconds = limits.grace_seconds
        self._changed.set()

    @property
    def ids(self) -> set[str]:
        """The devices of this machine."""
        return {device.id for device in self.lent.devices}

    # what others say

    def _on_report(self, report: Report) -> None:
        if isinstance(report.get("devices"), dict):
            self.lent.hear(report["devices"])
            self._refusals.tell()
            self._changed.set()

    def _on_loss(self, why: str) -> None:
        self.lent.forget()
        self.voice.say(f"{why}; it is started again", "machine")

    def _on_state(self, state: str, why: str) -> None:
        now = time.time()
        if state == "down" and not self.ending.asked.is_set():
            self._was_down = True
            # its workers are lost: they start anew when there is a way again, with the ports that lead here then
            self.lent.forget()
            self._send([], {}, {})
            self.voice.say(f"{why}; trying to reach it again", "link", state=state)
        elif state == "up" and self._was_down:
            self._was_down = False
            self.voice.say(f"connected again, after {span(now - self.link_since)}", "link", state=state)
        elif state == "refused":
            self._refused = why
        if state in ("up", "down"):
            self.link_since = now
        self._changed.set()

    # the course of it

    async def _connect(self) -> None:
        """The first connection; it is tried again for as long as it takes."""
        pause, said = _FIRST_PAUSE_SECONDS, ""
        while not self.ending.asked.is_set():
            try:
                return await self.link.open()
            except NotWelcome as refused:
                self._refused = str(refused)
                return
            except PoolClosed as error:
                if str(error) != said:
                    self.voice.say(f"{error} Trying again; Ctrl-C ends it.", "link", state="down")
                    said = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ending.asked.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _lend(self) -> None:
        asked = asyncio.create_task(self.ending.asked.wait())
        try:
            while not self.ending.asked.is_set() and not self._refused:
                self._changed.clear()
                self._mind_limits()
                await self._order()
                self._say_ready()
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({asked, changed}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            asked.cancel()

    def _mind_limits(self) -> None:
        """Which devices their owner keeps at this moment."""
        before = self.lent.kept
        self.lent.keep(self.owner.reasons(self.limits))
        after = self.lent.kept
        if not self._is_ready:
            return
        for device in self.lent.devices:
            if (reason := after.get(device.id, "")) != before.get(device.id, ""):
                self.voice.say(f"{device}: {f'taken back: {reason}' if reason else 'lent again'}", "device")

    async def _order(self) -> None:
        if not self.link.is_up:
            return
        devices, leaving = self.lent.order()
        contacts: dict[str, tuple[int, str]] = {}
        try:
            for device in devices:
                port = self._port(device.id)
                contacts[device.id] = (port, f"tls://127.0.0.1:{await self.link.expose(port)}")
        except (KalavaiError, OSError):
            # lost meanwhile: the link says so, and comes back
            return
        self._send(devices, contacts, {id: dict(each) for id, each in leaving.items()})

    def _port(self, id: str) -> int:
        from kalavai_nb.worker.rank import free_port

        if id not in self._ports:
            self._ports[id] = free_port()
        return self._ports[id]

    def _send(
        self, devices: list[Device], contacts: dict[str, tuple[int, str]], leaving: dict[str, dict[str, Any]]
    ) -> None:
        order: Order = {
            "head": None,
            "address": f"tls://127.0.0.1:{self.link.head_port}",
            "identity": asdict(self.link.membership.identity),
            "devices": [asdict(lent(device, self.limits)) for device in devices],
            "contacts": contacts,
            "leaving": leaving,
            "limits": {device.id: self.limits.order(device) for device in devices},
            "proxy": self.link.proxy_port,
            "agent": str(self._directory / SOCKET),
            "listens": not self._outbound_only,
            "cwd": str(self._directory / WORK),
            "measure": True,
        }
        if order != self._told:
            self._told = order
            self._machine.send(order)

    def _say_ready(self) -> None:
        if self._is_ready or not self.link.is_up or not self.lent.is_settled():
            return
        self._is_ready = True
        devices = self.lent.shown()
        lending = [f"{each['device']} ({each['name']})" for each in devices.values() if each["state"] == "lent"]
        seconds = time.time() - self.since
        said = f"lent to {self.link.membership.pool}: {', '.join(lending)}, after {seconds:.1f} s"
        if not lending:
            reasons = {each["why"] for each in devices.values() if each["why"]} | self._refusals.reasons
            said = f"joined {self.link.membership.pool}; nothing is lent now: {'; '.join(sorted(reasons))}"
        facts = {"seconds": round(seconds, 2), "devices": devices, "member": self.link.membership.member}
        self.voice.is_ready(said, "lent" if lending else "joined", **facts)

    async def _drain(self) -> None:
        """Let what runs end, for a grace; then it runs again elsewhere."""
        if self.ending.now.is_set() or not self.link.is_up:
            return
        grace = self.limits.grace_seconds
        self.lent.end(WHY_LEAVING, grace)
        await self._order()
        if busy := await self._running():
            self.voice.say("\n".join(busy), "running")
            self.voice.say(f"what runs may end within {span(grace)}; Ctrl-C again ends it now", "leaving")

        async def is_over() -> bool:
            return self.lent.is_drained or not self.link.is_up

        if not await self.ending.drain(grace + _END_SECONDS, is_over, every=0.1):
            left = await self._running()
            self.voice.say("; ".join(["ended while something ran", *left]), "leaving")

    async def _forget(self) -> None:
        with contextlib.suppress(KalavaiError):
            await self.link.ask("forget")
        self.link.membership.forget()
        self.voice.say(f"forgot the membership in {self.link.membership.pool}", "forgotten")

    async def _running(self) -> list[str]:
        with contextlib.suppress(KalavaiError, TimeoutError):
            return running(await asyncio.wait_for(self.snapshot(), _END_SECONDS), self.ids)
        return []

    async def _close(self) -> None:
        await self._machine.close()
        await self.link.close()
        await self.owner.close()
        if self._desk is not None:
            self._desk.close()
            (self._directory / SOCKET).unlink(missing_ok=True)
