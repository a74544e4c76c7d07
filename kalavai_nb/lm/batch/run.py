"""A run of `lm.map`, as a notebook holds it."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import KalavaiError, ModelError, ModelLost, OptionError, PoolClosed
from kalavai_nb.failure import interrupted
from kalavai_nb.lm.batch.display import CellDisplay, Hidden, Lines, Progress
from kalavai_nb.lm.batch.feed import Feed
from kalavai_nb.lm.batch.output import Lock, Output
from kalavai_nb.lm.batch.reader import DatasetChanged
from kalavai_nb.terminal import TERMINAL

if TYPE_CHECKING:
    import pandas as pd


class MapRun:
    """The rows of one `lm.map`: each is a dict with the row's own columns and ``output``, in the order of the dataset.

    ``for row in run`` gives them as they come, ``len`` and ``done`` count those that are in their place. ■ while
    waiting stops the run and keeps what is done; the same `lm.map` again goes on with it.

    Attributes
    ----------
    path : Path
        The JSON lines of the output. Each has ``_row`` (its number from 0), the row's columns, ``output``,
        ``finish_reason`` ("stop" or "length"), ``prompt_tokens``, ``output_tokens``, with ``logprobs=`` those too; a
        row that failed has ``error``, and None as its output. A column that has one of these names itself is kept as
        ``name_of_row``; ``_note`` says which columns had to be made into text.
    """

    def __init__(
        self,
        output: Output,
        lock: Lock,
        progress: Progress,
        display: CellDisplay | Lines | Hidden,
        make_feed: Callable[[Callable[[], None], Callable[[], None]], Feed],
    ) -> None:
        self.path: Path = output.path
        self._output, self._lock, self._progress, self._display = output, lock, progress, display
        self._changed = threading.Condition()
        self._is_over = self._is_stopped = False
        self._feed = make_feed(self._on_change, self._on_end)

    def start(self) -> MapRun:
        """Begin; the picture stays in the cell that calls this."""
        self._display.draw(self._progress)
        self._feed.start()
        return self

    # what there is, without waiting

    @property
    def done(self) -> int:
        """How many rows are done and in their place, those that failed among them."""
        return self._output.done

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows that have failed so far, each with its ``error``."""
        return list(self._output.failed())

    @property
    def is_running(self) -> bool:
        """Whether there is more to come."""
        return not self._is_over

    @property
    def error(self) -> KalavaiError | None:
        """What has cut it off, if something has; `wait` raises it."""
        return self._cut_off(self._feed.error) if self._is_over and self._feed.error else None

    def table(self) -> pd.DataFrame:
        """The rows that are done so far, by their numbers. Never raises."""
        import pandas as pd

        table = pd.DataFrame(list(self._output.records()) or {"_row": []}).set_index("_row")
        # rows that failed have none, and counts are whole numbers all the same
        counts = [name for name in ("prompt_tokens", "output_tokens") if name in table]
        return table.astype(dict.fromkeys(counts, "Int64"))

    def __len__(self) -> int:
        return self.done

    # waiting

    def __iter__(self) -> Iterator[dict[str, Any]]:
        given = 0
        while self._has(given):
            for record in self._output.records(given):
                yield record
                given += 1
        self._raise()

    def wait(self) -> MapRun:
        """Wait until all rows are done. ■ stops the run and keeps what is done. Rows that failed are in ``failed``.

        Raises ModelLost, ModelError or PoolClosed where the model is gone, OptionError where the dataset could not be
        read to its end; what is done is kept then too, and the error says how to go on.
        """
        with TERMINAL.waiting():
            self._wait(lambda: False)
        self._raise()
        return self

    # control

    def stop(self) -> None:
        """Stop; what is done is kept, and the same `lm.map` again goes on with it. Idempotent."""
        self._is_stopped = self._is_stopped or not self._is_over
        self._feed.stop()
        self._feed.join()

    def __repr__(self) -> str:
        ended = "cut off" if self.error else "stopped" if self._was_stopped else "done"
        state = "running" if self.is_running else ended
        failed = f", {self._progress.failed} failed" if self._progress.failed else ""
        return f"<MapRun {self._progress.rows}{failed}, {state}: {self.path}>"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    # inside

    @property
    def _was_stopped(self) -> bool:
        return self._is_stopped and self._progress.total != self.done

    def _has(self, index: int) -> bool:
        """Whether that row is in its place, or will be."""
        return self._wait(lambda: self.done > index)

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Whether it became ready; the end of the run ends the wait too."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: ready() or self._is_over)
        except KeyboardInterrupt as stop:
            self.stop()
            raise interrupted(stop, f"lm.map was stopped; {self.done} rows are done and kept in {self.path}.") from None
        return ready()

    def _raise(self) -> None:
        if error := self.error:
            raise error from self._feed.error

    def _on_change(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._display.draw(self._progress)

    def _on_end(self) -> None:
        self._lock.close()
        self._progress.is_over, self._progress.done = True, self.done
        error = self._feed.error
        self._progress.note = f"cut off: {error}" if error else "stopped" if self._was_stopped else ""
        try:
            # before the cell that waited goes on
            self._display.draw(self._progress, last=True)
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _cut_off(self, error: BaseException) -> KalavaiError:
        reason = str(error).rstrip(".") or type(error).__name__
        kept = f"{self.done} rows are done and kept in {self.path}"
        match error:
            case ModelError():
                kind: type[KalavaiError] = ModelLost if isinstance(error, ModelLost) else ModelError
                go_on = "load the model again, and the same lm.map with it goes on from there"
            case PoolClosed():
                kind, go_on = PoolClosed, "load the model again there, and the same lm.map with it goes on"
            case OptionError():
                kind, go_on = OptionError, "the same lm.map goes on from there once that is put right"
                if isinstance(error, DatasetChanged):
                    go_on = "give the dataset as it was, another out=, or resume=False to begin anew"
            case OSError():
                kind, reason = OptionError, f"{self.path} cannot be written: {error}"
                go_on = "the same lm.map goes on from there once there is room for more"
            case _:
                kind, go_on = ModelError, "the same lm.map goes on from there"
        return kind(f"lm.map was cut off: {reason}.\n{kept}; {go_on}.")
