"""The thread of a run: rows go to the model as fast as it takes them, and what comes of them is written.

So many rows are under way that each copy of the model finds the next ones waiting, and not more. Everything that
happens arrives in one queue and is handled in order, by this thread alone.

An error that comes of the model while it generates ends whatever it has under way, whichever row it was that it could
not do. Those rows are tried again one by one, with nothing else under way; the one that fails alone is to blame.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from kalavai_nb.errors import ModelError, ModelLost
from kalavai_nb.lm.batch.columns import line_of
from kalavai_nb.lm.batch.dataset import Dataset
from kalavai_nb.lm.batch.display import Progress
from kalavai_nb.lm.batch.output import Output
from kalavai_nb.lm.batch.prompts import Prompt
from kalavai_nb.lm.batch.reader import Reader, Row, sentence
from kalavai_nb.lm.batch.replicas import Replicas
from kalavai_nb.lm.generation import Delta, Generation, Sampling
from kalavai_nb.lm.request import Request, Sink
from kalavai_nb.lm.rings import Rings

LOOK_SECONDS = 0.2
# rows under way, in batches of the model, and how far rows may be ahead of one that takes long, in these windows
BATCHES, AHEAD_WINDOWS = 3, 16

Item = tuple[str, Any]


class Model(Protocol):
    """A model, as far as rows need one."""

    name: str

    def submit(self, prompt: Any, sink: Sink | None = None, **sampling: Any) -> Request: ...

    def cancel(self, requests: Sequence[Request]) -> None: ...


class Feed:
    """One run from its first row to its last. Its thread calls ``on_change`` after each step, ``on_end`` at last."""

    def __init__(
        self,
        model: Model,
        rings: Rings,
        dataset: Dataset,
        prompt: Prompt,
        sampling: Sampling,
        output: Output,
        replicas: Replicas,
        progress: Progress,
        on_change: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._model, self._rings, self._output = model, rings, output
        self._sampling, self._replicas, self._progress = sampling, replicas, progress
        self._on_change, self._on_end = on_change, on_end
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._reader = Reader(dataset, prompt, output, self._items.put)
        self._rows: dict[int, Row] = {}
        self._requests: dict[int, Request] = {}
        self._ready: deque[Row] = deque()
        self._suspects: deque[Row] = deque()
        self._end: tuple[int, BaseException | None] | None = None
        self._tokens = 0
        self._is_stopped = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="kalavai-map", daemon=True)

    # any thread

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End now; what is finished is kept."""
        self._is_stopped = True
        self._items.put(("stop", None))

    def join(self) -> None:
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    # the thread

    def _live(self) -> None:
        try:
            self._reader.start()
            while not (self._is_stopped or self._is_complete):
                self._submit_ready()
                self._reader.let(self._limit)
                self._hear_all()
                self._output.sync()
                self._report()
            if self._end and self._end[1] and not self._is_stopped:
                raise self._end[1]
        except BaseException as error:
            self.error = error
        finally:
            try:
                self._close()
            finally:
                self._on_end()

    def _close(self) -> None:
        self._reader.close()
        self._model.cancel(list(self._requests.values()))
        for close in (self._output.close, self._replicas.close):
            try:
                close()
            except Exception as error:  # one that cannot be closed does not keep the other from it
                self.error = self.error or error

    @property
    def _is_complete(self) -> bool:
        return self._end is not None and not self._rows

    @property
    def _limit(self) -> int:
        """Rows before this one may be read."""
        copies = sum(ring.error is None for ring in self._rings.all)
        window = BATCHES * self._rings.settings.max_batch * max(1, copies)
        return min(self._output.finished + window, self._output.done + AHEAD_WINDOWS * window)

    def _hear_all(self) -> None:
        """What has happened; waits for something, but not for long."""
        try:
            self._hear(*self._items.get(timeout=LOOK_SECONDS))
            while True:
                self._hear(*self._items.get_nowait())
        except queue.Empty:
            return

    def _hear(self, kind: str, what: Any) -> None:
        match kind:
            case "over":
                self._take(self._rows[what], self._requests.pop(what))
            case "row":
                self._rows[what.index] = what
                self._ready.append(what)
            case "total":
                self._progress.total = what
                self._replicas.start(None if what is None else what - self._output.finished)
            case "end":
                self._end = (what, None)
                self._progress.total = what
            case "broken":
                self._end = (self._output.finished, what)

    def _report(self) -> None:
        self._progress.done = self._output.finished
        self._progress.tokens = self._tokens + sum(len(request.made) for request in self._requests.values())
        self._progress.note = self._note
        self._on_change()

    @property
    def _note(self) -> str:
        state = next((ring.state for ring in self._rings.all if ring.state != "running"), "")
        return state or self._replicas.note

    # rows

    def _submit_ready(self) -> None:
        if self._suspects:
            if not self._requests:
                suspect = self._suspects.popleft()
                suspect.alone = True
                self._submit(suspect)
            return
        while self._ready and not any(row.alone for row in map(self._rows.get, self._requests) if row):
            self._submit(self._ready.popleft())

    def _submit(self, row: Row) -> None:
        if row.error:
            self._fail(row, row.error)
            return
        try:
            options = self._options(row.index)
            request = self._model.submit(row.prompt, lambda said: self._on_news(row.index, said), **options)
        except Exception as error:  # a prompt may be anything, and a tokeniser may do anything with it
            self._raise_if_gone()
            self._fail(row, sentence(error))
        else:
            self._requests[row.index] = request

    def _options(self, index: int) -> Mapping[str, Any]:
        """The sampling of a row, the same whenever it is done: as of that place in a list for `generate`."""
        options = asdict(self._sampling.of_row(index))
        del options["eos"]
        return options

    def _on_news(self, index: int, said: Delta | BaseException) -> None:
        """On a thread of the model."""
        if isinstance(said, BaseException) or said.finish_reason:
            self._items.put(("over", index))

    def _take(self, row: Row, request: Request) -> None:
        try:
            made = request.result()
        except ModelLost:
            self._raise_if_gone()
            self._ready.appendleft(row)
        except Exception as error:
            self._raise_if_gone()
            if row.alone:
                self._fail(row, sentence(error))
            else:
                self._suspects.append(row)
        else:
            self._tokens += len(made.token_ids)
            self._put(row, _result(made))

    def _fail(self, row: Row, error: str) -> None:
        self._progress.fail(error)
        self._put(row, {"output": None, "error": error})

    def _put(self, row: Row, result: Mapping[str, Any]) -> None:
        self._output.put(row.index, line_of(row.index, row.columns, row.as_text, result))
        del self._rows[row.index]

    def _raise_if_gone(self) -> None:
        """Whatever went wrong with a row: if no copy of the model is left, that is why."""
        rings = self._rings.all
        errors = [ring.error for ring in rings if ring.error]
        if len(errors) == len(rings):
            lost = [error for error in errors if isinstance(error, ModelLost)]
            raise [*lost, *errors, ModelError(f"{self._model.name} is closed.")][0]
        # it is being closed at this moment, and takes nothing any more
        self._rings.check()


def _result(made: Generation) -> dict[str, Any]:
    result: dict[str, Any] = {
        "output": made.text,
        "finish_reason": made.finish_reason,
        "prompt_tokens": made.prompt_tokens,
        "output_tokens": len(made.token_ids),
    }
    return {**result, "logprobs": [asdict(each) for each in made.logprobs]} if made.logprobs else result
