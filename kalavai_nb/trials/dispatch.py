"""The thread of a sweep: leases become slots, slots get trials, and what becomes of those comes home.

It asks the ledger for one device after another while trials wait, and keeps what it gets until nothing waits or the
ledger asks for it back. Everything that happens arrives in one queue and is handled in order, by this thread alone.
"""

from __future__ import annotations

import contextlib
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from kalavai_nb.engine import Engine, Event
from kalavai_nb.errors import NotEnoughDevices, PoolClosed
from kalavai_nb.search.search import Search
from kalavai_nb.state import Need, TrialState
from kalavai_nb.trials.judge import Job
from kalavai_nb.trials.leases import Leases
from kalavai_nb.trials.options import MapOptions
from kalavai_nb.trials.orders import Function, Orders
from kalavai_nb.trials.record import Record
from kalavai_nb.trials.results import STOPPED, Results
from kalavai_nb.trials.slots import Board, Slot

LOOK_SECONDS = 0.1
EVENTS_AT_ONCE = 512
# a worker kills what it was told to stop after 5 s; one that does not say so by then is not waited for
STOP_SECONDS = 9.0


class Dispatch:
    """One run of a sweep, from its first request for a device to its last outcome."""

    def __init__(
        self,
        engine: Engine,
        function: Function,
        options: MapOptions,
        record: Record,
        search: Search | None,
        verdicts: bool,
        draw: Callable[[str, bool], None],
    ) -> None:
        self.engine = engine
        self.began_at, self.had = time.time(), record.trials.ended
        self.ended_at: float | None = None
        self._engine, self._options, self._record, self._search = engine, options, record, search
        self._trials, self._draw = record.trials, draw
        self._run = secrets.token_hex(4)
        self._need = options.need(engine.owner, f"sweep {options.name}")
        self._orders = Orders(engine, self._run, function, options, verdicts)
        self._events: queue.Queue[Event] = queue.Queue()
        self._board = Board()
        self._results = Results(engine, options, record, search, verdicts, self._board, self._orders, self._events.put)
        self._leases = Leases(engine, self._hear)
        self._asked_all = search is None
        self._stop_at: float | None = None
        self._answered, self._over = threading.Event(), threading.Event()
        self._abandoned = self._ending = False
        # whether it takes no more trials; changed behind the gate, so that none falls between two runs
        self.is_ending = False
        self._gate = threading.Lock()
        self._copied: set[int] = set()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._drive, name="kalavai-sweep", daemon=True)

    # called by the sweep

    def start(self) -> None:
        """Begin. Raises NotEnoughDevices where the pool can never give what a trial needs."""
        self.more([trial.index for trial in self._trials if trial.state is TrialState.WAITING])
        self._thread.start()
        self._answered.wait()
        if isinstance(self.error, NotEnoughDevices):
            raise self.error

    def more(self, indices: list[int]) -> bool:
        """These trials wait to be run. False where this run is about to end, and does not take them."""
        with self._gate:
            if not self.is_ending:
                self._events.put({"kind": "more", "indices": indices})
            return not self.is_ending

    def stop(self, index: int | None = None) -> None:
        """Tell a trial to end, or all; those that have not after 5 s are killed. A second call kills them at once."""
        with self._gate:
            self.is_ending = self.is_ending or index is None
        self._events.put({"kind": "stop", "index": index})

    def abandon(self) -> None:
        """The pool is being closed: end without asking anything of it."""
        self._abandoned = True

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def log_of(self, index: int) -> str:
        """What a running trial has written so far. Raises PoolClosed where its worker is gone."""
        slots = [slot for slot in list(self._board.slots.values()) if index in slot.assigned[:1]]
        if not slots:
            return self._trials[index].log
        [text] = self._engine.call([(slots[0].worker, {"op": "kn_log", "lease": slots[0].lease})])
        return text if isinstance(text, str) else ""

    # the thread

    def _drive(self) -> None:
        self._engine.listen(self._run, self._hear)
        self._engine.listen("", self._hear)
        try:
            while self._goes_on():
                most = self._options.max_parallel
                room = len(self._trials) + 1 if most is None else most - len(self._board.slots)
                self._leases.ask(self._wanted(), room, self._board.pace.fastest())
                self._handle_events()
                self._results.finish()
                self._feed()
                self._draw(self._note(), False)
        except Exception as error:  # a search may be anybody's code; whatever it raises ends this run, not the notebook
            self.error = error
        finally:
            with self._gate:
                self._ending = self.is_ending = True
            with contextlib.suppress(Exception):  # the pool may be gone in many ways, and has nothing to give then
                self._give_back()
            try:
                self._results.close(self.error)
            finally:
                self.ended_at = time.time()
                self._over.set()
                self._answered.set()
                self._trials.change({})  # wakes those who wait for the end
            self._draw(f"cut off: {self.error}" if self.error else self._record.trouble, True)

    def _note(self) -> str:
        """What is to be said beside how far it is."""
        if self._record.trouble:
            return self._record.trouble
        if self._board.slots:
            return "" if self._results.began else "starting the first trials (with torch, that takes some seconds once)"
        return f"waiting: {self._leases.waiting_for}" if self._leases.waiting_for else ""

    def _goes_on(self) -> bool:
        with self._gate:
            busy = self._is_busy()
            self.is_ending = self.is_ending or not busy
        return busy

    def _is_busy(self) -> bool:
        if self._abandoned:
            return False
        at_work = self._board.at_work or self._results.coming > 0
        if self._stop_at is not None:
            return at_work and time.monotonic() < self._stop_at
        return at_work or len(self._board.queue) > 0 or not self._asked_all or not self._events.empty()

    def _hear(self, event: Event) -> None:
        """On Dask's thread."""
        if self._ending:
            self._leases.decline(event)
        else:
            self._events.put(event)

    def _handle_events(self) -> None:
        """Wait for an event; handle it, and all that have come meanwhile."""
        with contextlib.suppress(queue.Empty):
            self._handle(self._events.get(timeout=LOOK_SECONDS))
            for _ in range(EVENTS_AT_ONCE):
                self._handle(self._events.get_nowait())
        self._engine.check()

    def _handle(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "trials" or event.get("homecoming"):
            self._results.hear(event)
        elif handler := getattr(self, f"_on_{kind}", None):
            handler(event)

    # devices

    def _wanted(self) -> list[Need]:
        """What more trials need than the slots there are can take."""
        if self._stop_at is not None:
            return []
        needs = self._board.queue.needs()
        if self._need not in needs and (not self._asked_all or self._straggler(()) is not None):
            needs.append(self._need)
        return needs

    def _on_grant(self, event: Event) -> None:
        self._answered.set()
        slot = self._leases.grant(event)
        if slot:
            self._board.slots[slot.lease] = slot

    def _on_wait(self, event: Event) -> None:
        self._answered.set()
        self._leases.hear_reason(event)

    def _on_refused(self, event: Event) -> None:
        need, error = self._leases.refusal(event)
        if need is None or need == self._need:
            raise error
        for index in self._board.queue.of(need):
            self._board.queue.take_out(index)
            self._results.end(index, TrialState.FAILED, error)

    def _on_yield(self, event: Event) -> None:
        if slot := self._board.slots.get(event["lease"]):
            slot.wanted = True
            if event.get("leaving"):
                slot.leaving = True
                self._results.take_back(slot)

    def _on_lost(self, event: Event) -> None:
        """A worker is gone: its trial that ran was cut off; those it had not begun simply wait again."""
        self._leases.lose()
        for slot in [slot for slot in self._board.slots.values() if slot.worker == event["worker"]]:
            del self._board.slots[slot.lease]
            for index in slot.assigned:
                self._results.lose(index, slot, event.get("left", ""))

    def _release(self, slot: Slot) -> None:
        del self._board.slots[slot.lease]
        self._leases.release(slot)

    def _give_back(self) -> None:
        while not self._events.empty():
            self._leases.decline(self._events.get())
        self._leases.ask([], 0, ())
        for slot in list(self._board.slots.values()):
            self._release(slot)
        self._orders.close(self._engine.snapshot().devices)
        self._engine.unlisten(self._run, self._hear)
        self._engine.unlisten("", self._hear)

    # giving trials away

    def _feed(self) -> None:
        """Give each slot what it can take; give back those for which there is nothing."""
        for slot in list(self._board.slots.values()):
            if slot.lease not in self._board.slots:
                continue  # lost with another one
            room = 0 if slot.is_leaving or self._stop_at is not None else self._room(slot)
            given: list[int] = []
            while room > len(given) and (index := self._next(slot)) is not None:
                given.append(index)
            if given:
                slot.assigned += given
                slot.fed = True
                try:
                    self._orders.give(slot, self._record, given)
                except PoolClosed:
                    self._engine.check()
                    self._on_lost({"worker": slot.worker})
            elif not slot.assigned:
                self._release(slot)

    def _room(self, slot: Slot) -> int:
        """How many more trials to give to this slot now."""
        most = 1 if self._options.isolate is True else self._board.pace.at_once()
        share = math.ceil((self._board.queue.count(slot.need) + len(slot.assigned)) / len(self._board.slots))
        wanted = max(1, min(most, share))
        return wanted - len(slot.assigned) if len(slot.assigned) <= wanted // 2 else 0

    def _next(self, slot: Slot) -> int | None:
        found = self._board.queue.pop(slot.need)
        if found is None and slot.need == self._need and not self._asked_all:
            assert self._search is not None
            config = self._search.ask(len(self._trials))
            self._asked_all = config is None
            if config is not None:
                [index] = self._record.add([config])
                self._board.jobs[index] = Job(self._need)
                return index
        if found is None:
            late = self._straggler(slot.devices) if not slot.assigned and slot.need == self._need else None
            self._copied |= {late} if late is not None else set()
            return late
        index, self._board.jobs[index] = found
        return index

    def _straggler(self, elsewhere: Any) -> int | None:
        """The trial that has run longest, far longer than most, and that may run a second time elsewhere, once."""
        if not self._options.repeatable or len(self._board.queue) or not self._asked_all:
            return None
        now, running = time.time(), [(slot, index) for slot in self._board.slots.values() for index in slot.assigned]
        counts = [index for _, index in running]
        late = [
            (self._trials[index].started or now, index)
            for slot, index in running
            if counts.count(index) == 1
            and index not in self._copied
            and not set(slot.devices) & set(elsewhere)
            and self._results.is_running(index, slot)
        ]
        started, index = min(late, default=(now, None))
        return index if self._board.pace.straggles(now - started) else None

    def _on_more(self, event: Event) -> None:
        for index in event["indices"]:
            self._board.put(index, Job(self._need))

    def _on_stop(self, event: Event) -> None:
        if event["index"] is None:
            # said twice, it means at once
            patience = 0.0 if self._stop_at is not None else STOP_SECONDS
            self._stop_at = time.monotonic() + patience
        for slot in self._board.slots.values():
            # those that have not begun first, so that none begins now
            for index in reversed(slot.assigned):
                if event["index"] in (None, index):
                    self._results.tell_to_stop(slot, index, STOPPED)
        index = event["index"]
        if index is not None and not self._board.copies(index) and self._trials[index].state is TrialState.WAITING:
            self._board.queue.take_out(index)
            self._results.end(index, TrialState.STOPPED)
