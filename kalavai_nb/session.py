"""The cells of this notebook: bring the ranks what a cell needs, run it, bring home what it leaves."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kalavai_nb.asking import ToldAlready
from kalavai_nb.capture import Captured, capture, human_bytes
from kalavai_nb.cell import CellRun
from kalavai_nb.engine import Engine, Message
from kalavai_nb.errors import NotEnoughDevices, OptionError
from kalavai_nb.gang import Gang, Rank, Sending, plan_sending
from kalavai_nb.names import free_names
from kalavai_nb.options import RunOptions
from kalavai_nb.outputs import rank_range
from kalavai_nb.rendezvous import environment, own_address, strangers
from kalavai_nb.roads import by_pair
from kalavai_nb.roster import Roster
from kalavai_nb.screen import DocumentScreen
from kalavai_nb.state import Link
from kalavai_nb.terminal import TERMINAL
from kalavai_nb.values import bring_home, split
from kalavai_nb.view import make_view

# machines forget content that is out of date when so much is sent, or when there is so much of it
DROPPED_FROM_BYTES = 1 << 20
OUTDATED_KEPT = 100
KEPT_RUNS = 50
PROGRESS_FROM_BYTES = 50_000_000
LINE_CHARACTERS = 80
# the name that `pool.run(function)` gives to what the function returns
CALL_VALUE = "_call_value"


class Session:
    """This owner's cells in one pool. ``say`` shows one line of ours in the cell."""

    def __init__(self, engine: Engine, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._say = say
        self.roster = Roster(engine, say)
        self.runs: list[CellRun] = []
        # the workers of the gang that was looked at last, and the ways between their machines
        self._linked: frozenset[str] = frozenset()
        self._links: Mapping[tuple[str, str], Link] = {}
        engine.listen("", lambda event: self.roster.on_event(event, self.running()))

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
        gang = self.roster.gang(options)
        world_size = self.roster.world_size(gang, options)
        chosen = options.chosen(world_size)
        self._wait_for_cells(gang, chosen, options)
        prepare = partial(self._prepare, source, options, gang, world_size, captured, scattered, namespace, number)
        ranks = [gang.ranks[n] for n in chosen if n in gang.ranks and gang.ranks[n].lease]
        begun, is_stopped = None, False
        tell: Callable[[], None] = _told_already
        if len(ranks) == len(chosen):
            # the usual case: leased and begun in one step
            run, messages = prepare(ranks)
            try:
                begun = run if self.roster.wake(gang, ranks, options, messages) else None
            except ToldAlready as crossed:
                # it runs, since a moment
                begun, is_stopped = run, isinstance(crossed.__cause__, KeyboardInterrupt)
            finally:
                if begun is None:
                    run.discard()
        if begun is None:
            ranks = self.roster.ready(gang, chosen, options)
            try:
                begun, messages = prepare(ranks)
            except BaseException:
                self.roster.rest(ranks)
                raise
            tell = partial(self._engine.tell, messages)

        def finish(run: CellRun) -> Any:
            self.roster.take_reports(gang, run)
            self.roster.rest(ranks)
            error = run.error()
            if error and options.on_error == "continue" and run.status == "error":
                self._say("\n".join(error._render_traceback_()))  # type: ignore[attr-defined]
            elif error:
                raise error
            return self._bind_out(run, options, namespace)

        self.runs = [*self.runs[-KEPT_RUNS:], begun]
        if options.background is not None:
            begun.complete_in_background(finish, tell, is_stopped=is_stopped)
            return begun
        try:
            with TERMINAL.waiting():
                begun.complete(finish, tell, is_stopped=is_stopped)
        except KeyboardInterrupt:
            if not begun.done.is_set():
                # it came before the first look at it
                begun.complete(finish, tell, is_stopped=True)
        return begun

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

    # inside

    def _wait_for_cells(self, gang: Gang, chosen: list[int], options: RunOptions) -> None:
        """A rank runs one cell at a time: wait for one that was started with --async."""
        for run in self.running():
            busy = [rank.number for rank in run.ranks if gang.ranks.get(rank.number) is rank and rank.number in chosen]
            if busy:
                self._say(f"waiting for cell {run.number} (--async), which runs on these ranks")
                if not run.done.wait(options.wait):
                    raise NotEnoughDevices(
                        f"cell {run.number} (--async), which runs on these ranks, did not end within "
                        f"{options.wait:g} s. Wait longer, with wait=, or stop it: cancel() of its handle."
                    )

    def _place(self, sending: Sending, ranks: list[Rank]) -> None:
        """Bring content to the machines, and say so in one line."""
        packed, devices = sending.content(), [device for rank in ranks for device in rank.devices]
        # each goes once to each machine, however many ranks are there
        machines = len({device.machine for device in devices})
        total, done, started = machines * sum(p.blob.total_bytes for p in packed), 0, time.monotonic()

        def on_piece(count: int) -> None:
            nonlocal done, started
            done += count
            if total >= PROGRESS_FROM_BYTES and time.monotonic() - started > 1:
                started = time.monotonic()
                self._say(f"sending: {human_bytes(done)} of {human_bytes(total)}")

        self._engine.place(packed, devices, on_piece)
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

    def _drop(self, sending: Sending, gang: Gang, ranks: list[Rank]) -> None:
        gang.outdated = (gang.outdated | set(sending.superseded)) - set(gang.known.values())
        large = [item for item in sending.sent if item.packed.blob.total_bytes >= DROPPED_FROM_BYTES]
        if (sending.superseded and large) or len(gang.outdated) > OUTDATED_KEPT:
            self._engine.drop(gang.outdated, [device for rank in ranks for device in rank.devices])
            gang.outdated = set()

    def _prepare(
        self,
        source: str,
        options: RunOptions,
        gang: Gang,
        world_size: int,
        captured: list[Captured],
        scattered: dict[str, Any],
        namespace: dict[str, Any],
        number: int,
        ranks: list[Rank],
    ) -> tuple[CellRun, list[tuple[str, Message]]]:
        """Bring the ranks' machines what the cell needs; the run, and the messages that begin it."""
        links = self._links_between(ranks, options)
        sending = plan_sending(gang, ranks, captured, explicit=options.send is not None)
        _scatter(sending, gang, ranks, scattered, namespace)
        self._place(sending, ranks)
        self._drop(sending, gang, ranks)
        id, number = secrets.token_hex(4), number or len(self.runs) + 1
        numbers = [rank.number for rank in ranks]
        title = f"cell {number} runs on rank{'s' * (len(numbers) > 1)} {rank_range(numbers)}"
        screen = DocumentScreen(f"{id}-document", title) if options.background is not None else None
        view = make_view(options.show, numbers, id, screen, patient=any(rank.fresh for rank in ranks))
        messages = []
        for rank in ranks:
            take = {name: (c.packed.blob.digest, c.packed.blob.sizes) for name, c in sending.take[rank.number].items()}
            order = {
                "take": take,
                "out": list(options.out),
                "count": number,
                "rank": rank.number,
                "world_size": world_size,
                "device": rank.devices[0].torch_name if options.gpus != 0 else "cpu",
                "env": environment(ranks, rank, world_size, links),
                "address": own_address(ranks, rank, links),
            }
            message = {"op": "kn_run", "owner": self._engine.owner, "generation": rank.generation, "run": id}
            messages.append((rank.worker, {**message, "code": source, "order": order}))
        return CellRun(number, id, self._engine, ranks, options, view, first_line(source)), messages

    def _links_between(self, ranks: list[Rank], options: RunOptions) -> Mapping[tuple[str, str], Link]:
        """The ways between the machines of these ranks; says once who does not reach whom."""
        if len({rank.machine for rank in ranks}) == 1:
            return {}
        workers = frozenset(rank.worker for rank in ranks)
        is_new = workers != self._linked
        if is_new:
            self._linked, self._links = workers, by_pair(self._engine.snapshot().links)
        if apart := strangers(ranks, self._links):
            a, b = apart[0]
            more = f" ({len(apart)} pairs of machines do not)" if len(apart) > 1 else ""
            said = f"ranks {a.number} ({a.where}) and {b.number} ({b.where}) do not reach each other{more}"
            if options.reach == "direct":
                raise NotEnoughDevices(f"{said}, as reach=direct wants; %pool restart places them anew.")
            if is_new:
                self._say(f"{said}: torch.distributed will not work between them")
        return self._links

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


def _told_already() -> None:
    """The head has told the workers as it granted the leases."""


def first_line(source: str) -> str:
    """What a cell is called where there is one line for it: its first line that says something."""
    lines = (line.strip() for line in source.splitlines())
    return next((line for line in lines if line and not line.startswith("# %%pool")), "")[:LINE_CHARACTERS]


def _value_of(name: str, namespace: dict[str, Any]) -> Any:
    if name not in namespace:
        raise OptionError(f"scatter={name} was asked for, but the notebook has no name {name!r}.")
    return namespace[name]


def _scatter(
    sending: Sending, gang: Gang, ranks: list[Rank], scattered: dict[str, Any], namespace: dict[str, Any]
) -> None:
    """Add each rank's part of the names in ``scatter=``."""
    for name, value in scattered.items():
        for rank, part in zip(ranks, split(name, value, len(ranks)), strict=True):
            found = {item.name: item for item in capture({name: 0}, namespace, extra={name: part}, explicit=True)}
            sending.take[rank.number].update(found)
            sending.sent.append(found[name])
            digest, place = found[name].packed.blob.digest, f"{name}[{rank.number}]"
            if gang.known.get(place) not in (None, digest):
                sending.superseded.append(gang.known[place])
            gang.known[place] = digest
