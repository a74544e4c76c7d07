"""What becomes of the trials of a sweep: what they report and save, how they end, and whether they run again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kalavai_nb.engine import Engine, Event
from kalavai_nb.errors import SweepError
from kalavai_nb.scores import no_number, score
from kalavai_nb.search.search import Search
from kalavai_nb.state import Report, Trial, TrialState
from kalavai_nb.trials.content import Content
from kalavai_nb.trials.end import End, error_of, worth_keeping
from kalavai_nb.trials.homecoming import Homecoming
from kalavai_nb.trials.judge import DEATHS, again
from kalavai_nb.trials.options import MapOptions
from kalavai_nb.trials.orders import Orders
from kalavai_nb.trials.record import Outcome, Record
from kalavai_nb.trials.slots import Board, Slot

NOTHING: Mapping[str, str] = MappingProxyType({})
PRUNED, STOPPED, OVERTAKEN = "pruned", "the sweep was stopped", "another attempt was faster"
MOVED = "its device is leaving"


class Results:
    """Used by the dispatch's thread alone; ``tell`` puts an event into its queue."""

    def __init__(
        self,
        engine: Engine,
        options: MapOptions,
        record: Record,
        search: Search | None,
        verdicts: bool,
        board: Board,
        orders: Orders,
        tell: Callable[[Event], None],
    ) -> None:
        self._engine, self._options, self._record, self._search = engine, options, record, search
        self._verdicts, self._board, self._orders = verdicts, board, orders
        self._trials = record.trials
        self._homecoming = Homecoming(engine, record, tell)
        self._outcomes: dict[int, Outcome] = {}
        self._changes: dict[int, dict[str, Any]] = {}
        self._pruned: set[int] = set()
        # told to stop: however they end after that, unless with a value, they have been stopped
        self._told: set[int] = set()
        self._scored = False
        self._coming_home: set[int] = set()
        # whether any trial has begun in this run
        self.began = False

    @property
    def coming(self) -> int:
        """How many things are on their way home."""
        return self._homecoming.coming

    def hear(self, event: Event) -> None:
        """News of trials, or something that has come home."""
        if event.get("homecoming"):
            self._homecoming.arrived()
            getattr(self, f"_on_{event['kind']}")(event)
            return
        slot = self._board.slots.get(event["lease"])
        for item in event["news"]:
            getattr(self, f"_on_{item['kind']}")(item, slot)

    def finish(self) -> None:
        """Write what has ended, then show it; and show what has begun."""
        begun = {index: fields for index, fields in self._changes.items() if index not in self._outcomes}
        if begun:
            self._trials.change(begun)
        if self._outcomes:
            self._record.finish(self._outcomes)
        ended, self._changes, self._outcomes = list(self._outcomes), {}, {}
        for index in ended:
            self._learn(self._trials[index])

    def _learn(self, trial: Trial) -> None:
        """Tell the search. One that hears nothing to learn from is ended after its first trial, not after its last."""
        if self._search is None:
            return
        self._search.tell(trial)
        missing = [m for m in self._options.metrics if trial.state is TrialState.COMPLETE and score(trial, m) is None]
        if missing and not self._scored:
            raise SweepError(no_number(missing[0], trial))
        self._scored = self._scored or trial.state is TrialState.COMPLETE

    def end(self, index: int, state: TrialState, error: BaseException | None = None) -> None:
        """A trial ends without having run."""
        self._outcomes[index] = Outcome({"state": state, "error": error})

    def lose(self, index: int, slot: Slot, left: str = "") -> None:
        """The worker of this slot is gone, and with it what ran; what had not begun simply waits again.

        ``left`` says why, where its owner took it back.
        """
        if self._board.copies(index):
            return
        if self.is_running(index, slot):
            how = f"its worker was lost {DEATHS + 1} times, last on {slot}"
            end = {"status": "left", "how": left} if left else {"status": "lost", "how": how}
            # what it saved may still be on its way
            self._homecoming.after({"kind": "cut", "index": index, "end": end, "slot": slot})
        elif index in self._told:
            self.end(index, TrialState.STOPPED)
        elif not self._trials[index].state.is_finished():
            self._board.put(index, self._board.jobs[index])

    def take_back(self, slot: Slot) -> None:
        """What has not begun there waits again, for another slot."""
        for index in [index for index in slot.assigned if not self.is_running(index, slot)]:
            self.tell_to_stop(slot, index, MOVED)
            slot.assigned.remove(index)
            if not self._board.copies(index) and not self._trials[index].state.is_finished():
                self._board.put(index, self._board.jobs[index])

    def tell_to_stop(self, slot: Slot, index: int, reason: str) -> None:
        if reason == STOPPED:
            self._told.add(index)
        message = {"op": "kn_stop_trial", "lease": slot.lease, "index": index, "reason": reason}
        self._engine.tell([(slot.worker, message)])

    def is_running(self, index: int, slot: Slot) -> bool:
        return slot.assigned[:1] == [index] and self._state(index) is TrialState.RUNNING

    def close(self, error: BaseException | None) -> None:
        """The sweep's run is over: what has not ended is stopped."""
        self._homecoming.close()
        with contextlib.suppress(Exception):  # what the search makes of them does not matter any more
            self.finish()
        rest = [trial.index for trial in self._trials if not trial.state.is_finished()]
        self._record.finish({index: Outcome({"state": TrialState.STOPPED, "error": error}) for index in rest})

    def _state(self, index: int) -> TrialState:
        state: TrialState = self._changes.get(index, {}).get("state", self._trials[index].state)
        return state

    # news of trials

    def _on_began(self, item: Event, slot: Slot | None) -> None:
        index = item["index"]
        self.began = True
        if slot and not self._trials[index].state.is_finished():
            attempts = self._changes.get(index, {}).get("attempts", self._trials[index].attempts) + 1
            begun = {"state": TrialState.RUNNING, "device": str(slot), "started": time.time(), "attempts": attempts}
            self._changes[index] = begun

    def _on_dropped(self, item: Event, slot: Slot | None) -> None:
        """It was told to stop before it had begun. Those that are taken elsewhere are not the slot's any more."""
        index = item["index"]
        if slot and index in slot.assigned:
            slot.assigned.remove(index)
            if not self._board.copies(index) and not self._trials[index].state.is_finished():
                self.end(index, TrialState.STOPPED)

    def _on_report(self, item: Event, slot: Slot | None) -> None:
        index, step, metrics = item["index"], item["step"], item["metrics"]
        if self._trials[index].state.is_finished():
            return
        self._trials.add_report(index, Report(step, metrics))
        prune = bool(self._search and self._verdicts and self._search.report(index, step, metrics))
        if prune:
            self._pruned.add(index)
            self._told.add(index)
        if slot and self._verdicts:
            verdict = {"op": "kn_answer", "lease": slot.lease, "index": index, "step": step}
            self._engine.tell([(slot.worker, {**verdict, "stop": PRUNED if prune else ""})])

    def _on_saved(self, item: Event, slot: Slot | None) -> None:
        if slot:
            self._homecoming.bring_checkpoint(item["index"], slot.devices[0], item["value"])

    def _on_end(self, item: End, slot: Slot | None) -> None:
        index = item["index"]
        if slot is None:
            return
        mine = index in slot.assigned
        if mine:
            slot.assigned.remove(index)
        # decided already, or by another attempt; one that was taken away and ended well all the same counts
        decided = index in self._outcomes or index in self._coming_home or self._trials[index].state.is_finished()
        if decided or not (mine or item["status"] == "ok"):
            return
        self._orders.clean_up(index)
        if self._state(index) is TrialState.WAITING:
            self._on_began(item, slot)
        others = self._board.copies(index)
        if others and item["status"] != "ok":
            return
        for other in others:
            self.tell_to_stop(other, index, OVERTAKEN)
            other.assigned.remove(index)
        if ("value" in item and "inline" not in item["value"]) or "files" in item:
            self._coming_home.add(index)
            self._homecoming.bring_outcome(index, slot.devices[0], {**item, "slot": slot})
        else:
            self._decide(index, item, slot)

    # what has come home

    def _on_home(self, event: Event) -> None:
        end, slot = event["end"], event["end"].pop("slot")
        self._coming_home.discard(event["index"])
        if "lost" in event:
            lost = f"what it left on {slot} could not be brought home: {event['lost']}"
            self._decide(event["index"], {**end, "status": "lost", "how": lost}, slot)
        else:
            left: dict[str, str] = {name: event[name] for name in ("directory", "note") if name in event}
            self._decide(event["index"], end, slot, event.get("value"), left)

    def _on_checkpoint(self, event: Event) -> None:
        index = event["index"]
        self._record.keep_checkpoint(index, event["content"])
        # from here on, another attempt does not begin anew
        if job := self._board.jobs.get(index):
            self._board.jobs[index] = job.renewed()

    def _on_not_home(self, event: Event) -> None:
        """A checkpoint that is lost with its machine: the one before it counts."""

    def _on_cut(self, event: Event) -> None:
        if event["index"] not in self._outcomes and not self._trials[event["index"]].state.is_finished():
            self._decide(event["index"], event["end"], event["slot"])

    # deciding

    def _decide(
        self, index: int, end: End, slot: Slot, value: Content | None = None, left: Mapping[str, str] = NOTHING
    ) -> None:
        """Over, or again."""
        job = self._board.jobs[index]
        began = self._changes.pop(index, {})
        fields = {**began, "log": end.get("log", ""), "seconds": end.get("seconds"), "note": job.note, **left}
        if end["status"] == "ok":
            self._complete(index, end, slot, fields, value)
        elif end["status"] == "stopped" or index in self._told:
            state = TrialState.PRUNED if index in self._pruned else TrialState.STOPPED
            self._outcomes[index] = Outcome({**fields, "state": state})
        elif retry := again(job, end, self._options.retries, slot.devices, lambda: self._engine.snapshot().devices):
            self._changes[index] = {**fields, "state": TrialState.WAITING, "note": retry.note}
            self._board.put(index, retry)
        else:
            error = error_of(end)
            self._outcomes[index] = Outcome(
                {**fields, "state": TrialState.FAILED, "error": error}, end=worth_keeping(end)
            )

    def _complete(self, index: int, end: End, slot: Slot, fields: dict[str, Any], value: Content | None) -> None:
        content = value or Content(tuple(end["value"]["sizes"]), end["value"]["inline"])
        self._board.pace.add(slot, end["seconds"])
        try:
            fields |= {"state": TrialState.COMPLETE, "value": content.load(), "error": None}
        except Exception as error:  # whatever its own code raises is that trial's failure, not the sweep's
            error.add_note("The trial's value came home, but could not be rebuilt here.")
            fields |= {"state": TrialState.FAILED, "error": error}
        self._outcomes[index] = Outcome(fields, content)
