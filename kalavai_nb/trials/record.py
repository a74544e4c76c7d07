"""The trials of one sweep, here and in the journal: an outcome is written there before anybody sees it here."""

from __future__ import annotations

import contextlib
import copy
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kalavai_nb.blobs import pack
from kalavai_nb.capture import local_modules_by_value
from kalavai_nb.closure.culprit import why_not
from kalavai_nb.closure.fingerprint import config_key
from kalavai_nb.errors import SendError
from kalavai_nb.state import TrialState
from kalavai_nb.trials.content import Content
from kalavai_nb.trials.end import End
from kalavai_nb.trials.entries import Entry, Unreadable
from kalavai_nb.trials.journal import Journal
from kalavai_nb.trials.trial_list import TrialList


@dataclass(frozen=True)
class Outcome:
    """What becomes of a trial: its new fields, the content of its value, how it ended where that was not well."""

    fields: Mapping[str, Any]
    value: Content | None = None
    end: End = field(default_factory=dict)


class Record:
    """Adds trials, and changes them; the only writer of both the list and the journal."""

    def __init__(self, journal: Journal, sweep: int, trials: TrialList) -> None:
        self.journal, self.sweep, self.trials = journal, sweep, trials
        # why the journal cannot be written; then what is here is all there is
        self.trouble = ""
        self._entries: list[Entry] = []
        self._recorded: dict[tuple[str, int], Entry] = {}
        self._met: Counter[str] = Counter()

    def recall(self, entries: Iterable[Entry]) -> None:
        """What earlier runs left. A config that is added later is then the trial that it was."""
        self._recorded = {(entry.key, entry.occurrence): entry for entry in entries}

    def show(self, entries: Iterable[Entry]) -> None:
        """The trials as the journal has them, to be looked at."""
        for entry in entries:
            self.trials.append(**{name: value for name, value in vars(entry.trial).items() if name != "index"})
            self._entries.append(entry)

    def add(self, configs: Iterable[Any], *, only: bool = False) -> list[int]:
        """Trials for these configs, finished ones as they were; with ``only``, the sweep has no others.

        Raises SendError for a config that cannot be pickled, before any is added.
        """
        start = len(self._entries)
        with local_modules_by_value():
            contents = [(config, _content(number, config)) for number, config in enumerate(configs, start)]
        for config, content in contents:
            key = config_key(config)
            occurrence = self._met[key]
            self._met[key] += 1
            found = self._recorded.get((key, occurrence))
            # what the caller does to it later does not change what was run
            own = copy.copy(config) if isinstance(config, (dict, list)) else config
            trial = self.trials.append(own, **(_kept(found) if found else {}))
            checkpoint = found.checkpoint if found else None
            self._entries.append(Entry(key, occurrence, trial, content, checkpoint=checkpoint))
        indices = list(range(start, len(self._entries)))
        with self._noting_trouble():
            self.journal.place(self.sweep, {index: self._entries[index] for index in indices}, only=only)
        return indices

    def finish(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write what became of these trials, then show it."""
        with self._noting_trouble():
            self.journal.write(self.sweep, [self._written(index, outcome) for index, outcome in outcomes.items()])
        self.trials.change({index: outcome.fields for index, outcome in outcomes.items()})

    def keep_checkpoint(self, index: int, checkpoint: Content) -> None:
        """This is what the trial saved last."""
        before = self._entries[index].checkpoint
        self._entries[index] = entry = replace(self._entries[index], checkpoint=checkpoint)
        with self._noting_trouble():
            self.journal.write_checkpoint(self.sweep, entry)
            # only now, so that there is a whole one at any time
            if before:
                Path(before.file).unlink(missing_ok=True)

    def config(self, index: int) -> Content:
        """The config of a trial, pickled."""
        return self._entries[index].config

    def checkpoint(self, index: int) -> Content | None:
        return self._entries[index].checkpoint

    def path(self, index: int, what: str) -> Path:
        """Where a file of this trial goes."""
        entry = self._entries[index]
        return self.journal.path(self.sweep, entry.key, entry.occurrence, what)

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """A journal that cannot be written must not cost a result that is here."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"the journal cannot be written ({error}): results are in this notebook's memory alone"

    def _written(self, index: int, outcome: Outcome) -> Entry:
        trial = replace(self.trials[index], **outcome.fields)
        return replace(self._entries[index], trial=trial, value=outcome.value, end=dict(outcome.end))


def _content(number: int, config: Any) -> Content:
    try:
        packed = pack(config)
    except Exception as error:
        raise SendError(f"config {number} cannot be sent to the pool: {why_not(config, error, 'config')}") from None
    return Content(packed.blob.sizes, packed.content())


def _kept(entry: Entry) -> dict[str, Any]:
    """The fields of a trial that need not run again; nothing of one that must."""
    trial = entry.trial
    gone = isinstance(trial.value, Unreadable) and trial.value.file_is_gone
    if gone or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return {}
    names = ("state", "value", "seconds", "device", "attempts", "log", "started", "reports", "directory", "note")
    return {name: getattr(trial, name) for name in names}
