"""The thread that reads the dataset, never further ahead than it is let, and makes prompts of rows.

It is a thread of its own so that a dataset or a prompt function that takes its time holds up nothing that is finished.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.lm.batch.columns import Columns, columns_of, for_json, row_in
from kalavai_nb.lm.batch.dataset import Dataset
from kalavai_nb.lm.batch.output import Output
from kalavai_nb.lm.batch.prompts import Prompt

Tell = Callable[[tuple[str, Any]], None]


class DatasetChanged(OptionError):
    """A row is not what it was when its output was made."""


@dataclass
class Row:
    """A row with its prompt, or with the ``error`` that kept it from having one.

    ``alone`` is whether it is tried with nothing else under way, since something failed while it was.
    """

    index: int
    columns: Columns
    as_text: list[str]
    prompt: Any = None
    error: str = ""
    alone: bool = False


class Reader:
    """Tells of rows that are not done yet: ``("row", row)``, at last ``("end", count)`` or ``("broken", error)``."""

    def __init__(self, dataset: Dataset, prompt: Prompt, output: Output, tell: Tell) -> None:
        self._dataset, self._prompt, self._output, self._tell = dataset, prompt, output, tell
        self._begin, self._ahead = output.done, output.waiting
        self._limit = 0
        self._is_closed = False
        self._may_go_on = threading.Condition()
        # it may be deep in somebody's generator when the run ends, and is then left there
        self._thread = threading.Thread(target=self._read, name="kalavai-map-reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def let(self, limit: int) -> None:
        """Rows before this one may be read."""
        with self._may_go_on:
            self._limit = limit
            self._may_go_on.notify()

    def close(self) -> None:
        with self._may_go_on:
            self._is_closed = True
            self._may_go_on.notify()

    def _read(self) -> None:
        index = 0
        try:
            self._tell(("total", self._dataset.count()))
            rows = self._dataset.begin()
            index = self._pass_over(rows)
            while self._is_let(index):
                row = next(rows)
                self._take(index, row)
                index += 1
        except StopIteration:
            self._tell(("broken", _too_short(index)) if self._ahead else ("end", index))
        except OptionError as error:
            self._tell(("broken", error))
        except Exception as error:  # somebody's generator may raise anything
            self._tell(("broken", _of_dataset(error, index)))

    def _pass_over(self, rows: Iterator[Any]) -> int:
        """Rows whose output is there, if they are what they were; the number of the first that is not."""
        for index, record in enumerate(self._output.records()):
            if index == self._begin or self._is_closed:
                break
            check_row(index, rows, record)
        return self._begin

    def _is_let(self, index: int) -> bool:
        with self._may_go_on:
            self._may_go_on.wait_for(lambda: self._is_closed or index < self._limit)
            return not self._is_closed

    def _take(self, index: int, row: Any) -> None:
        if line := self._ahead.pop(index, None):
            compare(index, row, json.loads(line))
        else:
            self._tell(("row", self._prepared(index, row)))

    def _prepared(self, index: int, row: Any) -> Row:
        columns, reason = columns_of(row)
        prepared = Row(index, *for_json(columns), error=reason)
        if not reason:
            try:
                prepared.prompt = self._prompt.make(row, columns)
            except Exception as error:  # a template with a format that the value has not, a function of somebody's
                prepared.error = sentence(error)
        return prepared


def check_row(index: int, rows: Iterator[Any], record: dict[str, Any]) -> None:
    """Raises DatasetChanged where the next row is not what it was when its output was made."""
    try:
        row = next(rows)
    except StopIteration:
        raise _too_short(index) from None
    compare(index, row, record)


def compare(index: int, row: Any, record: dict[str, Any]) -> None:
    """The same for a row that is here."""
    columns, as_text = for_json(columns_of(row)[0])
    was = row_in(record)
    # what was made into text may look another way each time
    names = [name for name in {**was, **columns} if name not in as_text]
    differing = [name for name in names if name not in was or name not in columns or was[name] != columns[name]]
    if differing:
        name = differing[0]
        raise DatasetChanged(
            f"the dataset has changed: row {index} had {name}={was.get(name)!r:.60}, and has {columns.get(name)!r:.60}"
        )


def sentence(error: BaseException) -> str:
    """An error in one text, with its type where it is not one of ours, which say all in a sentence."""
    return str(error) if isinstance(error, KalavaiError) else f"{type(error).__name__}: {error}"


def _too_short(rows: int) -> DatasetChanged:
    return DatasetChanged(f"the dataset has changed: it has only {rows} rows, and more of them are done")


def _of_dataset(error: Exception, index: int) -> OptionError:
    ours = OptionError(f"the dataset could not be read at row {index}: {sentence(error)}")
    ours.__cause__ = error
    return ours
