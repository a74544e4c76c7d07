"""The devices that a model has: leases for them, the process on each, and who of them is gone."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

from kalavai_nb.engine import Engine, Event
from kalavai_nb.errors import NotEnoughDevices
from kalavai_nb.frames import Head
from kalavai_nb.lm.member import VANISHED, Member
from kalavai_nb.lm.routes import Routes
from kalavai_nb.lm.settings import Settings
from kalavai_nb.lm.watch import Watch
from kalavai_nb.state import Device, Need

# a process on a warm machine is there at once; a cold one imports transformers first
START_SECONDS = 60.0
RESTART_SECONDS = 8.0
LEAST_START_SECONDS = 1.0
LOOK_SECONDS = 0.1
# a device whose processes end this often before they have done anything is left alone
MOST_DEATHS = 3
# a device is given back when its process has ended; after so long, whatever has become of that
LEAVE_SECONDS = 5.0

Item = tuple[str, str, Head]


class Crew:
    """Members by name. All but `hear_on_any_thread` is for the thread of the ring."""

    def __init__(self, engine: Engine, run: str, name: str, settings: Settings) -> None:
        self._engine, self._run, self._name, self._settings = engine, run, name, settings
        self.items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.members: dict[str, Member] = {}
        self.routes = Routes(engine)
        self._leaving: dict[str, tuple[Member, float]] = {}
        self._deaths: dict[str, int] = {}
        self._request: str | None = None
        self.waits_for = ""
        engine.listen(run, self._hear_stage)
        engine.listen("", self._hear_pool)

    # devices

    def lease(
        self, count: int, on_wait: Callable[[str], None], devices: tuple[str, ...] = (), wait: float | None = None
    ) -> None:
        """Lease so many devices, those named first if they are free, and start a process on each; waits for them.

        Raises NotEnoughDevices where the pool cannot grant them, or not within ``wait`` seconds.
        """
        leases, _ = self._engine.acquire(self._need(count, prefer=devices), wait, on_wait)
        for lease in leases:
            self._enlist(lease.devices[0], lease.id)

    def lease_spares(self, count: int) -> None:
        """The same for devices that are free at this moment, ``count`` of them at most; waits for none."""
        held = {device for lease in self._engine.snapshot().leases for device in lease.devices}
        free = [d for d in self._engine.snapshot().devices if d.id not in held and not self._is_bad(d.id)]
        for device in free[:count]:
            try:
                leases, _ = self._engine.acquire(self._need(1, "spare", prefer=(device.id,)), 0.0)
            except NotEnoughDevices:
                return
            self._enlist(leases[0].devices[0], leases[0].id)

    def ask_for_device(self) -> None:
        """Ask for one more device without waiting: a ``grant`` is heard of as any other item."""
        if self._request is None:
            bad = tuple(id for id in self._deaths if self._is_bad(id))
            self.waits_for = ""
            self._request = self._engine.request(self._need(1, avoid=bad), self._hear_request)

    def stop_asking(self) -> None:
        if self._request:
            # a grant may have crossed this: it is given back when it is heard
            self._engine.cancel(self._request)
            self._request = None

    def again(self, dead: Member) -> Member | None:
        """A new process on the device of one that is gone, if its worker is there and it did not fail there often."""
        self._count_death(dead)
        is_held = any(lease.id == dead.lease for lease in self._engine.snapshot().leases)
        if not is_held or self._is_bad(dead.device.id):
            self.dismiss(dead)
            return None
        self.members.pop(dead.name, None)
        # if only its connection is gone, the process is there, and so is what it holds of the device
        return self._enlist(dead.device.id, dead.lease, instead_of=dead.name)

    def promote(self, spare: Member) -> None:
        """A spare that takes a place is not given back any more when somebody waits."""
        self._engine.recast([spare.lease], "model")

    def give_up(self, dead: Member) -> None:
        """End what did not come up, and count it against its device."""
        self._count_death(dead)
        self.dismiss(dead)

    def dismiss(self, member: Member) -> None:
        """End it, and give its device back when that is done: the next may need all its memory."""
        self.members.pop(member.name, None)
        self._leaving[member.name] = (member, time.monotonic())
        member.end()
        self.release_left()

    def release_left(self) -> None:
        """Give back the devices of those that have left since."""
        now = time.monotonic()
        left = [name for name, (m, since) in self._leaving.items() if m.is_gone or now - since > LEAVE_SECONDS]
        self._engine.release([self._leaving.pop(name)[0].lease for name in left])

    def praise(self, member: Member) -> None:
        """It has done its work: what went wrong on its device before counts no more."""
        self._deaths.pop(member.device.id, None)

    def close(self) -> None:
        """End all of them."""
        self.stop_asking()
        for member in list(self.members.values()):
            self.dismiss(member)
        others = []
        try:
            while self._leaving:
                with contextlib.suppress(queue.Empty):
                    item = self.items.get(timeout=LOOK_SECONDS)
                    if item[0] == "stage":
                        self.hear(item)
                    else:
                        others.append(item)
                self.release_left()
        finally:
            for item in others:
                self.items.put(item)

    def forget(self) -> None:
        """Hear of nothing any more."""
        self._engine.unlisten(self._run, self._hear_stage)
        self._engine.unlisten("", self._hear_pool)

    # hearing

    def hear(self, item: Item) -> Member | None:
        """Take note of an item; the member that it is about, if it is."""
        kind, name, fields = item
        member = self.members.get(name)
        if kind == "stage" and name in self._leaving:
            self._leaving[name][0].hear(fields)
            self.release_left()
        elif kind == "stage" and member:
            member.hear(fields)
            if fields["said"] == "started":
                self._connect(member)
        elif kind == "news" and member:
            member.last_heard, member.pinged = time.monotonic(), None
            member.note(fields)
        elif kind == "gone" and member:
            member.die(VANISHED)
        elif kind == "lease":
            self._hear_lease(fields)
        elif kind == "pool" and fields["kind"] == "lost":
            for lost in [m for m in self.members.values() if m.device.worker == fields["worker"]]:
                lost.die("was lost with its worker")
                lost.is_gone = True
        return member

    def ask_the_silent(self, watch: Watch, members: Sequence[Member]) -> None:
        """See `Watch.ask_the_silent`; not before all has been heard that has come."""
        if self.items.empty():
            watch.ask_the_silent(members)

    # inside

    def _need(self, count: int, kind: str = "model", **more: Any) -> Need:
        return Need(self._engine.owner, count, kind=kind, what=self._name, **more)

    def _count_death(self, dead: Member) -> None:
        self._deaths[dead.device.id] = self._deaths.get(dead.device.id, 0) + 1

    def _is_bad(self, device: str) -> bool:
        return self._deaths.get(device, 0) >= MOST_DEATHS

    def _enlist(self, device: str, lease: str, instead_of: str = "") -> Member | None:
        devices: dict[str, Device] = {each.id: each for each in self._engine.snapshot().devices}
        if device not in devices:
            self._engine.release([lease])
            return None
        member = Member(self._engine, self._run, devices[device], lease)
        self.members[member.name] = member
        member.start(instead_of)
        return member

    def _connect(self, member: Member) -> None:
        try:
            context = self._engine.identity.context(server=False)
            member.connect(self.routes.home(member, context), context, self.items.put)
        except OSError as error:
            member.die(f"cannot be reached from this notebook ({error})")

    def _hear_lease(self, event: Event) -> None:
        is_current = event["request"] == self._request
        if event["kind"] == "grant":
            [lease] = event["leases"]
            if is_current:
                self._enlist(lease["devices"][0], lease["id"])
            else:
                self._engine.release([lease["id"]])
        if not is_current:
            return
        if event["kind"] == "wait":
            self.waits_for = event["reason"]
            return
        self.waits_for = event.get("text", "")
        self._engine.unlisten(event["request"], self._hear_request)
        self._request = None

    def _hear_request(self, event: Event) -> None:
        self.items.put(("lease", "", event))

    def _hear_stage(self, event: Event) -> None:
        self.items.put(("stage", event["stage"], event))

    def _hear_pool(self, event: Event) -> None:
        if event["kind"] in ("lost", "yield"):
            self.items.put(("pool", "", event))
