"""The sweeps of a notebook by name: those that it has begun, and those that the journal beside it has."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from kalavai_nb.announce import say
from kalavai_nb.trials.journal import Journal
from kalavai_nb.trials.launch import restored
from kalavai_nb.trials.sweep import Sweep

DIRECTORY = ".kalavai"


class Shelf(Mapping[str, Sweep]):
    """``pool.sweeps`` and ``kn.sweeps``: {name: sweep}, the last begun last. They need no pool to be looked at."""

    def __init__(self) -> None:
        self._journals: dict[Path, Journal] = {}
        self._live: dict[str, Sweep] = {}

    @property
    def journal(self) -> Journal:
        """The journal of the directory that the notebook is in."""
        here = Path.cwd() / DIRECTORY
        known = self._journals.get(here)
        if known is None or not known.is_there:
            try:
                self._journals[here] = Journal(here)
            except (OSError, sqlite3.Error) as error:
                return self.substitute(error)
        return self._journals[here]

    def substitute(self, error: Exception) -> Journal:
        """A journal that ends with this process, since none can be kept here; says so."""
        here = Path.cwd() / DIRECTORY
        say(f"no journal can be kept in {here} ({error}): results are in memory, and gone with this notebook")
        directory = tempfile.mkdtemp(prefix="kalavai-journal-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        self._journals[here] = Journal(Path(directory))
        return self._journals[here]

    def add(self, sweep: Sweep) -> None:
        """Hold a sweep that this notebook has begun."""
        self._live[sweep.name] = sweep

    def live(self) -> list[Sweep]:
        """The sweeps that this notebook has begun."""
        return list(self._live.values())

    def stop_if_running(self, name: str | None) -> None:
        """A sweep of this name that still runs would write to the same rows as its successor."""
        running = self._live.get(name or "")
        if running and running.is_running:
            say(f"{name!r} was still running: it is stopped, and goes on here")
            running.stop()

    def forget(self, name: str) -> None:
        """Delete a sweep and its files from the journal. Raises KeyError for an unknown name."""
        self[name].stop()
        self._live.pop(name, None)
        self.journal.forget(name)

    def __getitem__(self, name: str) -> Sweep:
        found = self._live.get(name) or restored(self.journal, name)
        if found is None:
            there = ", ".join(map(repr, self)) or "none yet"
            raise KeyError(f"no sweep is called {name!r}. There are: {there}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.journal.names())

    def __len__(self) -> int:
        return len(self.journal.names())

    def __repr__(self) -> str:
        return "\n".join(repr(self[name]) for name in self) or "no sweeps yet"


# one for all pools of this process: what was found out outlives the pool that it ran on
sweeps = Shelf()
