"""The journal: every sweep's trials in an SQLite file beside the notebook, written before a result is shown.

``.kalavai/journal.db`` has a row for each trial; values of more than 64 KiB, checkpoints and what trials left in their
directories are files beside it. Several notebooks may write at once: each row is written whole, in short transactions.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kalavai_nb.state import Report, Trial, TrialState
from kalavai_nb.trials.content import Content
from kalavai_nb.trials.end import error_of
from kalavai_nb.trials.entries import Entry, Recorded, loaded, squeezed, unsqueezed

FILE_FROM_BYTES = 1 << 16
BUSY_SECONDS = 60.0
# sweeps without a name of their own that are kept
UNNAMED_KEPT = 20
QUIET_SECONDS = 3600.0
# of the schema below
VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sweeps (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, named INTEGER, fn TEXT, began REAL, written REAL,
    metrics TEXT, modes TEXT, code TEXT
);
CREATE TABLE IF NOT EXISTS trials (
    sweep INTEGER, key TEXT, occurrence INTEGER, position INTEGER, state TEXT, seconds REAL, device TEXT,
    attempts INTEGER, started REAL, note TEXT, directory TEXT,
    config BLOB, config_sizes TEXT, value BLOB, value_sizes TEXT, checkpoint BLOB, checkpoint_sizes TEXT,
    error BLOB, log BLOB, reports BLOB,
    PRIMARY KEY (sweep, key, occurrence)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_position ON trials (sweep, position);
"""


class Journal:
    """The journal in one directory. Used from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        directory.mkdir(parents=True, exist_ok=True)
        if not (ignore := directory / ".gitignore").exists():
            ignore.write_text("*\n")
        self._path = directory / "journal.db"
        self._db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # a commit outlives this process, however that ends, and costs no wait for the disk
        self._use_write_ahead_log()
        self._db.execute("PRAGMA synchronous=NORMAL")
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and version != VERSION:
                raise sqlite3.DatabaseError(f"{self._path} is of another version of kalavai_nb; move it away")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._inode = self._path.stat().st_ino

    @property
    def is_there(self) -> bool:
        """Whether what is written can be found again: its file has not been deleted."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    # sweeps

    def begin(
        self, name: str | None, fn: str, metrics: Iterable[str], modes: Iterable[str], code: dict[str, str]
    ) -> tuple[int, str]:
        """(id, name) of a sweep to write to: the one with this name, or a new one named after its function."""
        now = time.time()
        fields = (fn, now, now, json.dumps(list(metrics)), json.dumps(list(modes)), json.dumps(code))
        with self._transaction():
            if name is None:
                self._forget_oldest()
                taken = set(self.names())
                chosen = next(each for number in itertools.count(1) if (each := f"{fn}-{number}") not in taken)
            else:
                chosen = name
            self._db.execute(
                "INSERT INTO sweeps (name, named, fn, began, written, metrics, modes, code) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET fn=excluded.fn, "
                "began=excluded.began, written=excluded.written, metrics=excluded.metrics, modes=excluded.modes, "
                "code=excluded.code",
                (chosen, name is not None, *fields),
            )
            (id,) = self._db.execute("SELECT id FROM sweeps WHERE name = ?", (chosen,)).fetchone()
        return id, chosen

    def names(self) -> list[str]:
        """The names of all sweeps, the last begun last."""
        with self._lock:
            return [name for (name,) in self._db.execute("SELECT name FROM sweeps ORDER BY began, id")]

    def read(self, name: str) -> Recorded | None:
        """A sweep with all its trials: those of its last run in their order, then those of earlier ones."""
        with self._lock:
            columns = "id, name, fn, metrics, modes, code"
            row = self._db.execute(f"SELECT {columns} FROM sweeps WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            id, name, fn, *texts = row
            cursor = self._db.execute(
                "SELECT * FROM trials WHERE sweep = ? ORDER BY position IS NULL, position, started", (id,)
            )
            names = [column for column, *_ in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
        metrics, modes, code = map(json.loads, texts)
        entries = [self._entry(position, row) for position, row in enumerate(rows)]
        return Recorded(id, name, fn, tuple(metrics), tuple(modes), code, entries)

    def forget(self, name: str) -> None:
        """Delete a sweep and its files."""
        with self._transaction():
            found = self._db.execute("SELECT id FROM sweeps WHERE name = ?", (name,)).fetchone()
            if found:
                self._db.execute("DELETE FROM trials WHERE sweep = ?", found)
                self._db.execute("DELETE FROM sweeps WHERE id = ?", found)
                shutil.rmtree(self._files(found[0]), ignore_errors=True)

    # trials

    def path(self, sweep: int, key: str, occurrence: int, what: str) -> Path:
        """Where a file of this trial goes: its ``value``, ``config``, ``checkpoint`` or ``dir``."""
        files = self._files(sweep)
        files.mkdir(parents=True, exist_ok=True)
        return files / f"{key}-{occurrence}.{what}"

    def place(self, sweep: int, entries: Mapping[int, Entry], *, only: bool = True) -> None:
        """Say which trials a sweep has, and where: {position: entry}. Those recorded keep what they have.

        With ``only``, it has no others in this run.
        """
        rows = [
            (sweep, e.key, e.occurrence, position, str(e.trial.state), *self._kept(sweep, e, "config", e.config))
            for position, e in entries.items()
        ]
        with self._transaction():
            if only:
                self._db.execute("UPDATE trials SET position = NULL WHERE sweep = ?", (sweep,))
            self._db.executemany(
                "INSERT INTO trials (sweep, key, occurrence, position, state, config, config_sizes) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET position = excluded.position",
                rows,
            )

    def write(self, sweep: int, entries: Iterable[Entry]) -> None:
        """What became of these trials."""
        rows = [self._row(sweep, entry) for entry in entries]
        with self._transaction():
            self._update(
                "UPDATE trials SET state=?, seconds=?, device=?, attempts=?, started=?, note=?, directory=?, error=?, "
                "log=?, reports=?, value=?, value_sizes=? WHERE sweep=? AND key=? AND occurrence=?",
                sweep,
                rows,
            )

    def write_checkpoint(self, sweep: int, entry: Entry) -> None:
        """What this trial saved last."""
        kept = self._kept(sweep, entry, "checkpoint", entry.checkpoint)
        with self._transaction():
            self._update(
                "UPDATE trials SET checkpoint=?, checkpoint_sizes=? WHERE sweep=? AND key=? AND occurrence=?",
                sweep,
                [(*kept, sweep, entry.key, entry.occurrence)],
            )

    # inside

    def _use_write_ahead_log(self) -> None:
        # SQLite does not wait for others in this one statement, so two notebooks that begin at once would meet here
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            # with the lock from the beginning, so that two notebooks cannot meet half-way
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _update(self, statement: str, sweep: int, rows: list[tuple[Any, ...]]) -> None:
        """Change rows that are there. Raises sqlite3.Error where they are not, or nobody will ever read them."""
        if not self.is_there:
            raise sqlite3.OperationalError(f"{self._path} was deleted")
        if self._db.executemany(statement, rows).rowcount < len(rows):
            raise sqlite3.OperationalError("this sweep was deleted from it")
        self._db.execute("UPDATE sweeps SET written = ? WHERE id = ?", (time.time(), sweep))

    def _files(self, sweep: int) -> Path:
        return self.directory / "files" / str(sweep)

    def _forget_oldest(self) -> None:
        rows = self._db.execute(
            "SELECT id, written FROM sweeps WHERE NOT named ORDER BY began DESC, id DESC"
        ).fetchall()
        # what was written to lately may still run, here or in another notebook
        old = [(id,) for id, written in rows[UNNAMED_KEPT - 1 :] if time.time() - written > QUIET_SECONDS]
        for found in old:
            self._db.execute("DELETE FROM trials WHERE sweep = ?", found)
            self._db.execute("DELETE FROM sweeps WHERE id = ?", found)
            shutil.rmtree(self._files(found[0]), ignore_errors=True)

    def _kept(self, sweep: int, entry: Entry, what: str, content: Content | None) -> tuple[Any, Any]:
        """The two columns of some content: its bytes, or the name of the file that has them; and its sizes."""
        if content is None:
            return None, None
        sizes = json.dumps(content.sizes)
        if not content.file and len(content.inline) < FILE_FROM_BYTES:
            return content.inline, sizes
        path = Path(content.file) if content.file else self.path(sweep, entry.key, entry.occurrence, what)
        if not content.file:
            path.write_bytes(content.inline)
        return path.name, sizes

    def _row(self, sweep: int, entry: Entry) -> tuple[Any, ...]:
        trial = entry.trial
        reports = [[report.step, report.metrics] for report in trial.reports]
        return (
            str(trial.state),
            trial.seconds,
            trial.device,
            trial.attempts,
            trial.started,
            trial.note,
            trial.directory,
            squeezed(json.dumps(entry.end) if entry.end else ""),
            squeezed(trial.log),
            squeezed(json.dumps(reports) if reports else ""),
            *self._kept(sweep, entry, "value", entry.value),
            sweep,
            entry.key,
            entry.occurrence,
        )

    def _entry(self, index: int, row: dict[str, Any]) -> Entry:
        state = TrialState(row["state"])
        end = json.loads(unsqueezed(row["error"]) or "{}")
        contents = {name: self._content(row, name) for name in ("config", "value", "checkpoint")}
        trial = Trial(
            index,
            state if state.is_finished() else TrialState.STOPPED,
            loaded(contents["config"]),
            loaded(contents["value"]),
            error_of(end) if end else None,
            row["seconds"],
            row["device"] or "",
            row["attempts"] or 0,
            unsqueezed(row["log"]),
            row["started"],
            tuple(Report(step, metrics) for step, metrics in json.loads(unsqueezed(row["reports"]) or "[]")),
            row["directory"] or "",
            row["note"] or ("" if row["position"] is not None else "not among the configs of the last run"),
        )
        config = contents["config"] or Content(())
        value, checkpoint = contents["value"], contents["checkpoint"]
        return Entry(row["key"], row["occurrence"], trial, config, value, end, checkpoint)

    def _content(self, row: dict[str, Any], name: str) -> Content | None:
        kept, sizes = row[name], row[f"{name}_sizes"]
        if kept is None:
            return None
        sizes = tuple(json.loads(sizes))
        return (
            Content(sizes, kept)
            if isinstance(kept, bytes)
            else Content(sizes, file=str(self._files(row["sweep"]) / kept))
        )
