"""One cell on its ranks, from the first output to the last end marker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from kalavai_nb.capture import human_bytes
from kalavai_nb.engine import Engine, Event
from kalavai_nb.errors import CellTimeout, KalavaiError
from kalavai_nb.failure import Failure, exception_of, with_traceback
from kalavai_nb.gang import Rank
from kalavai_nb.options import RunOptions
from kalavai_nb.snapshot import Cell
from kalavai_nb.view import View

# after a rank raised, how long the others may take to end by themselves: often they raise the same
GRACE_SECONDS = 2.0
# after a rank died; what they do without it leads nowhere
DEATH_GRACE_SECONDS = 0.5
LOOK_SECONDS = 0.5
# what a cell that was waited for hands over is kept in the list of the last cells where it is small
KEPT_BYTES = 1 << 20


class CellRun:
    """A cell that runs, or has run: what its ranks said, and how each of them ended.

    ``status`` is ``running``, ``ok``, ``error``, ``interrupted`` or ``timeout``; ``text`` is its first line.
    """

    def __init__(
        self, number: int, id: str, engine: Engine, ranks: list[Rank], options: RunOptions, view: View, text: str = ""
    ) -> None:
        self.number, self.id, self.text = number, id, text
        self.ranks = ranks
        self.status = "running"
        self.started = time.time()
        self._engine = engine
        self._options = options
        self._view = view
        # one that is written in C: an interrupt in the midst of it leaves no lock behind
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._said: dict[int, list[str]] = {rank.number: [] for rank in ranks}
        self._expected = {rank.number: 0 for rank in ranks}
        self._running = {rank.number: rank for rank in ranks}
        self._ends: dict[int, dict[str, Any]] = {}
        self._failures: list[Failure] = []
        self._stop_at: float | None = None
        self._stopped_for = ""
        self.done = threading.Event()
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._handed_bytes, self._is_handed_over = 0, False
        engine.listen(id, self._events.put)

    # while it runs

    def follow(self) -> None:
        """Show outputs until every rank has ended. Interrupted, it stops the ranks and goes on to their ends."""
        deadline = None if self._options.timeout is None else time.monotonic() + self._options.timeout
        while self._running:
            try:
                self._step(deadline)
            except KeyboardInterrupt:
                self.stop("interrupted", "it was interrupted")
        self._engine.unlisten(self.id, self._events.put)
        if self.status == "running":
            self.status = "error" if self._failures else "ok"
        self._view.close(time.monotonic(), repr(self).strip("<>"))

    def stop(self, status: str, reason: str) -> None:
        """Interrupt all ranks that still run; they are ended if they do not obey. A second time: end them now."""
        if self.status == "running":
            self.status = status
        self._interrupt(reason)

    def lose(self, rank: Rank, how: str) -> None:
        """This rank is gone and will not say so itself. Called from any thread."""
        end = {"status": "died", "how": how, "tail": ""}
        self._events.put({"rank": rank.number, "sequence": None, "items": [], "end": end})

    def discard(self) -> None:
        """It was never begun."""
        self._engine.unlisten(self.id, self._events.put)
        self.done.set()

    # afterwards

    def error(self) -> BaseException | None:
        """What the notebook should see of how it went; None where all is well."""
        if self.status == "interrupted":
            sentences = [failure.sentence() for failure in self._failures if failure.died]
            lines = ["KeyboardInterrupt: the cell was stopped on all its ranks.", *sentences]
            return with_traceback(KeyboardInterrupt(" ".join(lines[1:])), lines)
        if self.status == "timeout":
            sentences = [failure.sentence() for failure in self._failures if failure.died]
            text = f"the cell ran longer than its timeout of {self._options.timeout:g} s and was stopped."
            return with_traceback(CellTimeout(" ".join([text, *sentences])), [f"CellTimeout: {text}", *sentences])
        return exception_of(self._failures) if self._failures else None

    def report(self, rank: int) -> dict[str, Any]:
        """What a rank left behind (see worker/rank.py); empty where it died."""
        return self._ends.get(rank, {}).get("kalavai") or {}

    def log(self, rank: int | None = None) -> str:
        """All that the ranks said, or one of them."""
        if rank is not None:
            return "".join(self._said.get(rank, []))
        return "\n".join(f"── rank {n} ──\n{''.join(said)}".rstrip("\n") for n, said in sorted(self._said.items()))

    def look(self, owner: str) -> Cell:
        """What others see of it while it runs."""
        devices = tuple(dict.fromkeys(device.id for rank in self.ranks for device in rank.devices))
        return Cell(self.id, owner, self.number, self.text, len(self.ranks), devices, self.started)

    # as the handle of --async

    def complete(self, finish: Callable[[CellRun], Any], tell: Callable[[], None], *, is_stopped: bool = False) -> None:
        """Begin it with ``tell``, and follow to the end; ``finish`` makes the result, or raises the error.

        ``is_stopped`` is whether it was interrupted before. Raises nothing itself.
        """
        try:
            self._attend(tell, int(is_stopped))
            self._outcome = finish(self)
            for end in self._ends.values():
                # at home now
                handed = (end.get("kalavai") or {}).pop("out", {})
                self._handed_bytes += sum(sum(value["sizes"]) for value in handed.values())
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()

    def complete_in_background(
        self, finish: Callable[[CellRun], Any], tell: Callable[[], None], *, is_stopped: bool = False
    ) -> None:
        """The same, where only the beginning is waited for. Interrupted in that, it is stopped and waited for."""
        thread = threading.Thread(
            target=self.complete,
            args=(finish, _nothing),
            kwargs={"is_stopped": is_stopped},
            name=f"kalavai-cell-{self.id}",
            daemon=True,
        )
        try:
            tell()
            thread.start()
        except KeyboardInterrupt:
            if thread.is_alive():
                self.cancel()
            else:
                self.complete(finish, tell, is_stopped=True)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end. The values of ``out=``, or of ``pool.run``; raises what the cell raised.

        Raises TimeoutError where it has not ended after ``timeout`` seconds; the cell goes on. Where the cell was
        waited for, values over 1 MB in all are handed over once: KalavaiError says so when they are asked for again.
        """
        if not self.done.wait(timeout):
            raise TimeoutError(f"the cell has not ended after {timeout:g} s; it goes on")
        if self._error:
            raise self._error
        if self._is_handed_over:
            raise KalavaiError(
                f"the values of cell {self.number} ({human_bytes(self._handed_bytes)}) were handed over when it ended, "
                "and are not kept here a second time: give them a name where they come, or run the cell with --async, "
                "whose handle keeps them."
            )
        outcome = self._outcome
        if self._options.background is None and self._handed_bytes > KEPT_BYTES:
            # the list of the last cells would keep it for long
            self._outcome, self._is_handed_over = None, True
        return outcome

    def cancel(self) -> None:
        """Stop the cell, as ■ would."""
        if not self.done.is_set():
            self.stop("interrupted", "it was cancelled")

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.to_thread(self.result).__await__()

    def __repr__(self) -> str:
        ranks = f"{len(self.ranks)} rank{'s' * (len(self.ranks) != 1)}"
        return f"<cell {self.number} on {ranks}: {self.status}>"

    # inside

    def _attend(self, tell: Callable[[], None], stops: int) -> None:
        """Tell and follow. However often it is interrupted, it goes on to the ends of all ranks, which come sooner."""
        is_told, stopped = False, 0
        while True:
            try:
                if not is_told:
                    # interrupted in the midst of it, it is said again: workers hear the same twice as once
                    tell()
                    is_told = True
                while stopped < stops:
                    self.stop("interrupted", "it was interrupted")
                    stopped += 1
                return self.follow()
            except KeyboardInterrupt:
                stops += 1

    def _step(self, deadline: float | None) -> None:
        now = time.monotonic()
        moments = [moment - now for moment in (deadline, self._stop_at) if moment is not None]
        pause = self._view.pause(now)
        wait = min([LOOK_SECONDS, *moments] + ([pause] if pause is not None else []))
        try:
            self._take(self._events.get(timeout=max(0.0, wait)))
            # whatever has come meanwhile is shown with it
            while not self._events.empty():
                self._take(self._events.get_nowait())
        except queue.Empty:
            self._engine.check()
        now = time.monotonic()
        self._view.refresh(now)
        if deadline is not None and now >= deadline and self.status == "running":
            self.stop("timeout", "its time was up")
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = None
            self._interrupt(self._stopped_for)

    def _take(self, event: Event) -> None:
        number = event["rank"]
        if number not in self._running:
            return
        now = time.monotonic()
        items = [list(item) for item in event["items"]]
        if event["sequence"] is not None and event["sequence"] != self._expected[number]:
            items.insert(0, ["stream", "stderr", "[some output was lost on the way]\n"])
        self._expected[number] = (event["sequence"] or 0) + 1
        for item in items:
            self._said[number].append(_as_text(item))
        self._view.say(number, items, now)
        if event.get("end") is not None:
            self._end(number, event["end"], now)

    def _end(self, number: int, end: dict[str, Any], now: float) -> None:
        rank = self._running.pop(number)
        self._ends[number] = end
        self._view.end(number, now)
        if end["status"] == "ok":
            return
        lost = tuple(sorted(rank.names)) if end["status"] == "died" else ()
        self._failures.append(Failure(number, rank.where, end, lost))
        if self._options.on_error == "stop" and self._running and self._stop_at is None and not self._stopped_for:
            self._stop_at = now + (DEATH_GRACE_SECONDS if end["status"] == "died" else GRACE_SECONDS)
            self._stopped_for = f"rank {number} failed"

    def _interrupt(self, reason: str) -> None:
        by_worker: dict[str, list[str]] = {}
        for rank in self._running.values():
            by_worker.setdefault(rank.worker, []).append(rank.generation)
        message = {"op": "kn_interrupt", "reason": reason}
        self._engine.tell([(worker, {**message, "generations": names}) for worker, names in by_worker.items()])


def _nothing() -> None:
    """It was told already."""


def _as_text(item: list[Any]) -> str:
    if item[0] == "stream":
        return str(item[2])
    if item[0] == "clear":
        return ""
    return str(item[1].get("text/plain", "")) + "\n"
