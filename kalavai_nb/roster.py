"""Which ranks this notebook has: leases for them, their processes, and what became of those that are gone."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from kalavai_nb.asking import ToldAlready
from kalavai_nb.cell import CellRun
from kalavai_nb.engine import Engine, Event, Message
from kalavai_nb.errors import NotEnoughDevices
from kalavai_nb.freight import present
from kalavai_nb.gang import Gang, Rank, gang_key
from kalavai_nb.options import RunOptions
from kalavai_nb.screen import LiveDisplay
from kalavai_nb.state import Device, Lease, Need
from kalavai_nb.terminal import TERMINAL

RELEASED = "was released while idle, since another notebook waited for its device"


class Roster:
    """The gangs of one session. ``say`` shows one line of ours in the cell."""

    def __init__(self, engine: Engine, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._say = say
        self._gangs: dict[tuple[object, ...], Gang] = {}
        self._lock = threading.RLock()
        self._news: list[str] = []

    def gang(self, options: RunOptions) -> Gang:
        """The gang that cells with these options share."""
        return self._gangs.setdefault(gang_key(options), Gang())

    def ready(self, gang: Gang, chosen: list[int], options: RunOptions) -> list[Rank]:
        """The ranks with these numbers, leased and started. Says which ranks are gone since the last cell."""
        fresh = self._leased(gang, chosen, options)
        try:
            if fresh:
                self._start(fresh)
        except BaseException:
            self._end(fresh)
            self.rest([gang.ranks[number] for number in chosen if number in gang.ranks])
            raise
        with self._lock:
            gang.ranks.update({rank.number: rank for rank in fresh})
            ranks = [gang.ranks[number] for number in chosen]
            news, self._news = self._news, []
        for sentence in news:
            self._say(sentence)
        return ranks

    def wake(self, gang: Gang, ranks: list[Rank], options: RunOptions, then: list[tuple[str, Message]]) -> bool:
        """Lease these idle ranks again, and tell their workers ``then`` in the same step.

        False where a rank is gone: nothing was told then, and what was granted is idle again.
        """
        need = self._need(options, len(ranks) * options.per, wakes=tuple(rank.lease for rank in ranks))
        leases, told = self._acquire(need, options, then)
        if not told:
            granted = {lease.id for lease in leases}
            for rank in ranks:
                if rank.lease not in granted:
                    self._forget(gang, rank.number, RELEASED)
            self._engine.rest(granted & set(need.wakes))
            self._engine.release(granted - set(need.wakes))
        return told

    def rest(self, ranks: list[Rank]) -> None:
        """Their cell has ended: the ranks stay, idle."""
        self._engine.rest([rank.lease for rank in ranks if rank.lease])

    def take_reports(self, gang: Gang, run: CellRun) -> None:
        """Take over what the ranks report; forget those that died."""
        dead = []
        with self._lock:
            for rank in run.ranks:
                if report := run.report(rank.number):
                    rank.names, rank.port, rank.fresh = dict(report["names"]), report["port"], False
                elif gang.ranks.get(rank.number) is rank:
                    del gang.ranks[rank.number]
                    dead.append(rank)
        self._engine.release([rank.lease for rank in dead if rank.lease])

    def world_size(self, gang: Gang, options: RunOptions) -> int:
        """How many ranks a cell with these options has. Raises NotEnoughDevices where there is none."""
        if options.gpus:
            return options.gpus // options.per
        if options.ranks and gang.ranks:
            return max(gang.ranks) + 1
        need = self._need(options, options.per)
        fitting = sum(need.fits(device) for device in self._engine.snapshot().devices)
        if fitting < options.per:
            raise NotEnoughDevices(f"wanted {need}, but the pool has none such; %pool shows what there is.")
        return fitting // options.per

    def expected(self, options: RunOptions) -> list[tuple[int, list[Device]]]:
        """(number, devices) of the ranks that a cell with these options would have, were it run now."""
        gang = self.gang(options)
        world_size = self.world_size(gang, options)
        need = self._need(options, world_size * options.per)
        held = {device.id for rank in gang.ranks.values() for device in rank.devices}
        fitting = [device for device in self._engine.snapshot().devices if need.fits(device)]
        free = [device for device in fitting if device.id not in held]
        if len(fitting) < need.count:
            raise NotEnoughDevices(
                f"asked for {need}, but the pool has {len(fitting)}: {', '.join(map(str, fitting))}."
            )
        expected = []
        for number in options.chosen(world_size):
            devices = gang.ranks[number].devices if number in gang.ranks else [free.pop(0) for _ in range(options.per)]
            expected.append((number, devices))
        return expected

    def restart(self) -> str:
        """End all ranks, and let machines forget what they were sent; the next cell gets new ones.

        Returns what was lost, as a sentence.
        """
        with self._lock:
            sent = {digest for gang in self._gangs.values() for digest in (*gang.known.values(), *gang.outdated)}
            ranks = [rank for gang in self._gangs.values() for rank in gang.ranks.values()]
            names = sorted({name for rank in ranks for name in rank.names})
            self._gangs.clear()
        self._end(ranks)
        if sent:
            self._engine.drop(sent, self._engine.snapshot().devices)
        lost = f" Lost: {', '.join(names)}." if names else ""
        return f"{len(ranks)} rank{'s' * (len(ranks) != 1)} ended.{lost} The next cell gets new ones."

    def release(self, lease: str, why: str) -> list[str] | None:
        """End the idle rank of this lease; the next cell says so. The names that it held; None where it is gone."""
        with self._lock:
            held = [(gang, rank) for gang in self._gangs.values() for rank in gang.ranks.values()]
            found = [(gang, rank) for gang, rank in held if rank.lease == lease]
            for gang, rank in found:
                self._forget(gang, rank.number, why)
        self._end([rank for _, rank in found])
        return sorted(name for _, rank in found for name in rank.names) if found else None

    def on_event(self, event: Event, running: list[CellRun]) -> None:
        """On the engine's thread: a rank was taken back, died, or was lost with its worker."""
        kind = event["kind"]
        if kind == "lost":
            for run in running:
                for rank in run.ranks:
                    if rank.worker == event["worker"]:
                        run.lose(rank, _how_lost(event))
        with self._lock:
            busy = {id(rank) for run in running for rank in run.ranks}
            for gang in self._gangs.values():
                for rank in [rank for rank in gang.ranks.values() if id(rank) not in busy]:
                    if why := _why_gone(event, rank):
                        self._forget(gang, rank.number, why)

    # inside

    def _leased(self, gang: Gang, chosen: list[int], options: RunOptions) -> list[Rank]:
        """Lease the devices of the chosen ranks; returns those that have no process yet."""
        missing = [number for number in chosen if number not in gang.ranks]
        if options.gpus == 0:
            need = self._need(options, 0)
            fitting = [device for device in self._engine.snapshot().devices if need.fits(device)]
            return [Rank(number, "", [fitting[number]]) for number in missing]
        wakes = {gang.ranks[number].lease: number for number in chosen if number in gang.ranks}
        others = [d.id for n, rank in gang.ranks.items() if n not in chosen for d in rank.devices]
        # ranks that are all there are where they are
        connected = bool(missing) and len(chosen) > 1 and options.wants_reach
        placed: dict[str, Any] = {"wakes": tuple(wakes), "avoid": tuple(others), "connected": connected}
        need = self._need(options, len(chosen) * options.per, **placed)
        granted_leases, _ = self._acquire(need, options)
        leases = {lease.id: lease for lease in granted_leases}
        try:
            # an idle rank may have been released in the moment before it was asked for
            for number in [number for lease, number in wakes.items() if lease not in leases]:
                self._forget(gang, number, RELEASED)
                missing = sorted([*missing, number])
            granted = [lease for lease in leases.values() if lease.id not in wakes]
            devices = {device.id: device for device in self._engine.snapshot().devices} if granted else {}
            pairs = zip(missing, granted, strict=True)
            return [Rank(number, lease.id, [devices[id] for id in lease.devices]) for number, lease in pairs]
        except BaseException:
            self._engine.release(lease for lease in leases if lease not in wakes)
            self._engine.rest(lease for lease in leases if lease in wakes)
            raise

    def _acquire(
        self, need: Need, options: RunOptions, then: list[tuple[str, Message]] | None = None
    ) -> tuple[list[Lease], bool]:
        """``Engine.acquire``, with one line in the cell that says what it waits for."""
        display = LiveDisplay(f"wait-{secrets.token_hex(4)}")
        started = time.monotonic()
        waited: list[str] = []

        def on_wait(reason: str) -> None:
            waited.append(reason)
            display.draw({"text/plain": f"[pool] waiting: {reason}"})

        with TERMINAL.waiting():
            leases, told = self._engine.acquire(need, options.wait, on_wait, then or ())
            try:
                if waited:
                    text = f"[pool] waited {time.monotonic() - started:.1f} s for {need}"
                    display.draw({"text/plain": text}, last=True)
            except BaseException as error:
                if told:
                    raise ToldAlready from error
                self._engine.rest(lease.id for lease in leases if lease.id in need.wakes)
                self._engine.release(lease.id for lease in leases if lease.id not in need.wakes)
                raise
        return leases, told

    def _start(self, ranks: list[Rank]) -> None:
        messages = []
        for rank in ranks:
            # gpus=0: no lease, and no device to be seen
            selectors = [device.selector for device in rank.devices] if rank.lease else [""]
            message = {"op": "kn_start", "owner": self._engine.owner, "lease": rank.lease, "selectors": selectors}
            messages.append((rank.worker, message))
        replies = self._engine.call(messages)
        for rank, reply in zip(ranks, replies, strict=True):
            rank.generation, rank.port = reply.get("generation", ""), reply.get("port", 0)
        for reply in replies:
            present(reply)

    def _end(self, ranks: list[Rank]) -> None:
        # by its lease too: one that was interrupted while it started has not told its generation
        messages = [(r.worker, {"op": "kn_end_ranks", "lease": r.lease, "generations": [r.generation]}) for r in ranks]
        self._engine.call(messages)
        self._engine.release([rank.lease for rank in ranks if rank.lease])

    def _forget(self, gang: Gang, number: int, why: str) -> None:
        """This rank is gone; the next cell says so, and which names went with it."""
        with self._lock:
            rank = gang.ranks.pop(number, None)
            if rank is None:
                return
            names = ", ".join(sorted(rank.names))
            lost = f" Lost with it: {names}." if names else ""
            self._news.append(f"rank {rank.number} ({rank.where}) {why}.{lost}")

    def _need(self, options: RunOptions, count: int, **more: Any) -> Need:
        filters: dict[str, Any] = {"per": options.per, "type": options.type, "host": options.host}
        return Need(owner=self._engine.owner, count=count, vram_bytes=options.vram, **filters, **more)


def _how_lost(event: Event) -> str:
    left = event.get("left")
    return f"went with its device ({left})" if left else "was lost with its worker"


def _why_gone(event: Event, rank: Rank) -> str:
    if event["kind"] == "evicted" and event["lease"] == rank.lease:
        return f"was released while idle, since {event['wanted_by']} waited for its device"
    if event["kind"] == "died" and event["generation"] == rank.generation:
        return f"{event['how']} while idle" + (
            ", because the machine ran out of memory" if event["out_of_memory"] else ""
        )
    if event["kind"] == "lost" and event["worker"] == rank.worker:
        return _how_lost(event)
    return ""
