"""The ranks of this notebook: get a gang, bring it what a cell needs, run the cell, keep the ranks for the next."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from kalavai_nb.capture import Captured, capture, free_names, human_bytes
from kalavai_nb.cell import CellRun
from kalavai_nb.engine import Engine, Event, present
from kalavai_nb.errors import NotEnoughDevices, OptionError
from kalavai_nb.gang import Gang, Rank, Sending, gang_key, plan_sending
from kalavai_nb.ledger import Need
from kalavai_nb.options import RunOptions
from kalavai_nb.outputs import rank_range
from kalavai_nb.screen import DocumentScreen, LiveDisplay
from kalavai_nb.state import Device, Lease
from kalavai_nb.values import bring_home, split
from kalavai_nb.view import make_view

DROPPED_FROM_BYTES = 1 << 20
KEPT_RUNS = 50
PROGRESS_FROM_BYTES = 50_000_000
# the name that `pool.run(function)` gives to what the function returns
CALL_VALUE = "_call_value"


class Session:
    """This owner's ranks in one pool. ``say`` shows one line of ours in the cell."""

    def __init__(self, engine: Engine, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._say = say
        self._gangs: dict[tuple[object, ...], Gang] = {}
        self._lock = threading.RLock()
        self._news: list[str] = []
        self.runs: list[CellRun] = []
        engine.listen("", self._on_event)

    def run(
        self,
        source: str,
        options: RunOptions,
        namespace: dict[str, Any],
        *,
        number: int = 0,
        extra: dict[str, Any] | None = None,
    ) -> CellRun:
        """Run ``source`` on the ranks that ``options`` ask for; returns when it has ended, or at once in background.

        ``namespace`` is where free names are taken from and where ``out=`` is bound; ``extra`` are names that go along
        whatever ``send=`` says. Does not raise what the cell raised: see ``CellRun.error``.
        """
        captured = self.captured(source, options, namespace)
        captured += capture(dict.fromkeys(extra or (), 0), namespace, extra=extra or {})
        scattered = {name: _value_of(name, namespace) for name in options.scatter}
        gang = self._gangs.setdefault(gang_key(options), Gang())
        ranks, world_size = self._ready_ranks(gang, options)
        self._tell_news()
        try:
            sending = plan_sending(gang, ranks, captured, explicit=options.send is not None)
            _scatter(sending, ranks, scattered, namespace)
            self._place(sending, ranks)
            run = self._begin(source, options, ranks, world_size, sending, number)
        except BaseException:
            self._rest(ranks)
            raise

        def finish(run: CellRun) -> Any:
            self._after(gang, run)
            self._rest(ranks)
            error = run.error()
            if error and options.on_error == "continue" and run.status == "error":
                self._say("\n".join(error._render_traceback_()))  # type: ignore[attr-defined]
            elif error:
                raise error
            return self._bind_out(run, options, namespace)

        if options.background is None:
            run.complete(finish)
        else:
            run.complete_in_background(finish)
        return run

    def running(self) -> list[CellRun]:
        """The cells that have not ended."""
        return [run for run in self.runs if not run.done.is_set()]

    def captured(self, source: str, options: RunOptions, namespace: dict[str, Any]) -> list[Captured]:
        """The names that ``source`` needs of the notebook, with their content."""
        names = free_names(source)
        if options.send is not None:
            names = {name: names.get(name, 0) for name in options.send}
        names = {name: line for name, line in names.items() if name not in options.scatter}
        return list(capture(names, namespace, explicit=options.send is not None))

    def expected_ranks(self, options: RunOptions) -> list[tuple[int, list[Device]]]:
        """(number, devices) of the ranks that a cell with these options would have, were it run now."""
        gang = self._gangs.get(gang_key(options), Gang())
        world_size = self._world_size(gang, options)
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
        """End all ranks; the next cell gets new ones. Returns what was lost, as a sentence."""
        with self._lock:
            ranks = [rank for gang in self._gangs.values() for rank in gang.ranks.values()]
            names = sorted({name for rank in ranks for name in rank.names})
            self._gangs.clear()
        self._end(ranks)
        lost = f" Lost: {', '.join(names)}." if names else ""
        return f"{len(ranks)} rank{'s' * (len(ranks) != 1)} ended.{lost} The next cell gets new ones."

    # which ranks

    def _ready_ranks(self, gang: Gang, options: RunOptions) -> tuple[list[Rank], int]:
        """The chosen ranks of the gang, started and leased, and its world size."""
        world_size = self._world_size(gang, options)
        chosen = options.chosen(world_size)
        self._wait_for_cells(gang, chosen, options)
        fresh = self._fresh_ranks(gang, chosen, options)
        try:
            self._start(fresh)
        except BaseException:
            self._end(fresh)
            self._rest([gang.ranks[number] for number in chosen if number in gang.ranks])
            raise
        with self._lock:
            gang.ranks.update({rank.number: rank for rank in fresh})
            return [gang.ranks[number] for number in chosen], world_size

    def _world_size(self, gang: Gang, options: RunOptions) -> int:
        if options.gpus:
            return options.gpus // options.per
        if options.ranks and gang.ranks:
            return max(gang.ranks) + 1
        need = self._need(options, options.per)
        fitting = sum(need.fits(device) for device in self._engine.snapshot().devices)
        if fitting < options.per:
            raise NotEnoughDevices(f"the pool has no {need}; %pool shows what there is.")
        return fitting // options.per

    def _need(self, options: RunOptions, count: int, **more: Any) -> Need:
        filters: dict[str, Any] = {"per": options.per, "type": options.type, "host": options.host}
        return Need(owner=self._engine.owner, count=count, vram_bytes=options.vram, **filters, **more)

    def _fresh_ranks(self, gang: Gang, chosen: list[int], options: RunOptions) -> list[Rank]:
        """Lease the devices of the chosen ranks; returns those that have no process yet."""
        missing = [number for number in chosen if number not in gang.ranks]
        if options.gpus == 0:
            need = self._need(options, 0)
            fitting = [device for device in self._engine.snapshot().devices if need.fits(device)]
            return [Rank(number, "", [fitting[number]]) for number in missing]
        wakes = {gang.ranks[number].lease: number for number in chosen if number in gang.ranks}
        others = [d.id for n, rank in gang.ranks.items() if n not in chosen for d in rank.devices]
        need = self._need(options, len(chosen) * options.per, wakes=tuple(wakes), avoid=tuple(others))
        leases = {lease.id: lease for lease in self._acquire(need, options)}
        try:
            # an idle rank may have been released in the moment before it was asked for
            for number in [number for lease, number in wakes.items() if lease not in leases]:
                self._forget(gang, number, "was released while idle, since another notebook waited for its device")
                missing = sorted([*missing, number])
            granted = [lease for lease in leases.values() if lease.id not in wakes]
            devices = {device.id: device for device in self._engine.snapshot().devices} if granted else {}
            pairs = zip(missing, granted, strict=True)
            return [Rank(number, lease.id, [devices[id] for id in lease.devices]) for number, lease in pairs]
        except BaseException:
            self._engine.release(lease for lease in leases if lease not in wakes)
            self._engine.rest(lease for lease in leases if lease in wakes)
            raise

    def _acquire(self, need: Need, options: RunOptions) -> list[Lease]:
        display = LiveDisplay(f"wait-{secrets.token_hex(4)}")
        started = time.monotonic()
        waited: list[str] = []

        def on_wait(reason: str) -> None:
            waited.append(reason)
            display.draw({"text/plain": f"[pool] waiting: {reason}"})

        leases = self._engine.acquire(need, options.wait, on_wait)
        if waited:
            display.draw({"text/plain": f"[pool] waited {time.monotonic() - started:.1f} s for {need}"})
        return leases

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
        messages = [(rank.worker, {"op": "kn_end_ranks", "generations": [rank.generation]}) for rank in ranks]
        self._engine.call(messages)
        self._engine.release([rank.lease for rank in ranks if rank.lease])

    def _rest(self, ranks: list[Rank]) -> None:
        self._engine.rest([rank.lease for rank in ranks if rank.lease])

    def _wait_for_cells(self, gang: Gang, chosen: list[int], options: RunOptions) -> None:
        """A rank runs one cell at a time: wait for one that was started with --async."""
        for run in self.running():
            busy = [rank.number for rank in run.ranks if gang.ranks.get(rank.number) is rank and rank.number in chosen]
            if busy:
                self._say(f"waiting for cell {run.number} (--async), which runs on these ranks")
                if not run.done.wait(options.wait):
                    raise NotEnoughDevices(f"cell {run.number} (--async) did not end within {options.wait:g} s.")

    # what they need

    def _place(self, sending: Sending, ranks: list[Rank]) -> None:
        """Bring content to the machines, and say so in one line."""
        packed = [item.packed for take in sending.take.values() for item in take.values()]
        total, done, started = sum(p.blob.total_bytes for p in packed), 0, time.monotonic()

        def on_piece(count: int) -> None:
            nonlocal done, started
            done += count
            if total >= PROGRESS_FROM_BYTES and time.monotonic() - started > 1:
                started = time.monotonic()
                self._say(f"sending: {human_bytes(done)} of {human_bytes(total)}")

        self._engine.place(packed, [device for rank in ranks for device in rank.devices], on_piece)
        parts = []
        for word, items in (("sent", sending.sent), ("reused", sending.reused)):
            shown = [item for item in items if not item.is_module and not item.name.startswith("_call")]
            named = [f"{item.name} ({human_bytes(item.packed.blob.total_bytes)})" for item in shown]
            if named:
                parts.append(f"{word} {', '.join(dict.fromkeys(named))}")
        kept = [item.name for item in sending.kept if not item.is_module]
        if kept:
            parts.append(f"kept the ranks' own {', '.join(kept)} (send={','.join(kept)} sends yours)")
        if parts:
            self._say("; ".join(parts))

    def _drop(self, sending: Sending, ranks: list[Rank]) -> None:
        large = [item for item in sending.sent if item.packed.blob.total_bytes >= DROPPED_FROM_BYTES]
        if sending.superseded and large:
            self._engine.drop(sending.superseded, [device for rank in ranks for device in rank.devices])

    # running

    def _begin(
        self, source: str, options: RunOptions, ranks: list[Rank], world_size: int, sending: Sending, number: int
    ) -> CellRun:
        id = secrets.token_hex(4)
        number = number or len(self.runs) + 1
        numbers = [rank.number for rank in ranks]
        title = f"cell {number} runs on ranks {rank_range(numbers)}"
        screen = DocumentScreen(f"{id}-document", title) if options.background is not None else None
        view = make_view(options.show, numbers, id, screen, patient=any(rank.fresh for rank in ranks))
        run = CellRun(number, id, self._engine, ranks, options, view)
        messages = []
        for local_rank, rank in enumerate(ranks):
            take = {name: (c.packed.blob.digest, c.packed.blob.sizes) for name, c in sending.take[rank.number].items()}
            order = {
                "take": take,
                "out": list(options.out),
                "count": run.number,
                "rank": rank.number,
                "world_size": world_size,
                "device": rank.devices[0].torch_name if options.gpus != 0 else "cpu",
                "env": self._environment(ranks, rank, local_rank, world_size),
            }
            message = {"op": "kn_run", "generation": rank.generation, "run": id, "code": source, "order": order}
            messages.append((rank.worker, message))
        self.runs = [*self.runs[-KEPT_RUNS:], run]
        for rank, reply in zip(ranks, self._engine.call(messages), strict=True):
            if "gone" in reply or reply["stale"]:
                run.lose(rank, reply.get("gone", "had ended before the cell began"))
        self._drop(sending, ranks)
        return run

    def _environment(self, ranks: list[Rank], rank: Rank, local_rank: int, world_size: int) -> dict[str, str]:
        """torchrun's variables."""
        host = ranks[0].worker.split("://")[1].rsplit(":", 1)[0]
        here = [other for other in ranks if other.devices[0].machine == rank.devices[0].machine]
        environment = {
            "RANK": str(rank.number),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(here.index(rank)),
            "LOCAL_WORLD_SIZE": str(len(here)),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(ranks[0].port),
        }
        # gloo would look for the host's own name, which need not lead anywhere
        return {**environment, "GLOO_SOCKET_IFNAME": "lo"} if host.startswith("127.") else environment

    def _after(self, gang: Gang, run: CellRun) -> None:
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

    def _bind_out(self, run: CellRun, options: RunOptions, namespace: dict[str, Any]) -> Any:
        """Bind the names of ``out=`` to lists by rank (None where a rank failed); returns them, or a call's values."""
        values = {}
        for name in options.out:
            handed = [(rank, run.report(rank.number).get("out", {}).get(name)) for rank in run.ranks]
            values[name] = [found and bring_home(self._engine, rank, found) for rank, found in handed]
        if CALL_VALUE in values:
            return values[CALL_VALUE]
        namespace.update(values)
        return values or None

    # news of ranks that are idle

    def _on_event(self, event: Event) -> None:
        """On the engine's thread: a rank was taken back, died, or was lost with its worker."""
        kind = event["kind"]
        if kind == "lost":
            for run in self.running():
                for rank in run.ranks:
                    if rank.worker == event["worker"]:
                        run.lose(rank, "was lost with its worker")
        with self._lock:
            busy = {id(rank) for run in self.running() for rank in run.ranks}
            for gang in self._gangs.values():
                for rank in [rank for rank in gang.ranks.values() if id(rank) not in busy]:
                    if why := _why_gone(event, rank):
                        self._forget(gang, rank.number, why)

    def _forget(self, gang: Gang, number: int, why: str) -> None:
        """This rank is gone; the next cell says so, and which names went with it."""
        with self._lock:
            rank = gang.ranks.pop(number)
            names = ", ".join(sorted(rank.names))
            lost = f" Lost with it: {names}." if names else ""
            self._news.append(f"rank {rank.number} ({rank.where}) {why}.{lost}")

    def _tell_news(self) -> None:
        with self._lock:
            news, self._news = self._news, []
        for sentence in news:
            self._say(sentence)


def _why_gone(event: Event, rank: Rank) -> str:
    if event["kind"] == "evicted" and event["lease"] == rank.lease:
        return f"was released while idle, since {event['wanted_by']} waited for its device"
    if event["kind"] == "died" and event["generation"] == rank.generation:
        return f"{event['how']} while idle" + (
            ", because the machine ran out of memory" if event["out_of_memory"] else ""
        )
    if event["kind"] == "lost" and event["worker"] == rank.worker:
        return "was lost with its worker"
    return ""


def _value_of(name: str, namespace: dict[str, Any]) -> Any:
    if name not in namespace:
        raise OptionError(f"scatter={name} was asked for, but the notebook has no name {name!r}.")
    return namespace[name]


def _scatter(sending: Sending, ranks: list[Rank], scattered: dict[str, Any], namespace: dict[str, Any]) -> None:
    """Add each rank's part of the names in ``scatter=``."""
    for name, value in scattered.items():
        for rank, part in zip(ranks, split(name, value, len(ranks)), strict=True):
            found = {item.name: item for item in capture({name: 0}, namespace, extra={name: part}, explicit=True)}
            sending.take[rank.number].update(found)
            sending.sent.append(found[name])
