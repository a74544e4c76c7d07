"""What trials leave on their machines, brought home behind the dispatch's back: large values, files, checkpoints."""

from __future__ import annotations

import secrets
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kalavai_nb.engine import Engine, Event
from kalavai_nb.state import Device
from kalavai_nb.trials.content import Content
from kalavai_nb.trials.record import Record


class Homecoming:
    """Brings things home one after another, so that a checkpoint is home before the outcome that follows it.

    ``tell`` hears, as an event, of each thing that has come, or why it cannot.
    """

    def __init__(self, engine: Engine, record: Record, tell: Callable[[Event], None]) -> None:
        self._engine, self._record, self._tell = engine, record, tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kalavai-homecoming")
        self.coming = 0

    def bring_outcome(self, index: int, device: Device, end: dict[str, Any]) -> None:
        """Bring the value and the files of a trial that has ended."""
        self._begin(lambda: {"kind": "home", "index": index, "end": end, **self._outcome(index, device, end)})

    def bring_checkpoint(self, index: int, device: Device, handed: dict[str, Any]) -> None:
        """Bring what a trial has saved."""
        self._begin(lambda: {"kind": "checkpoint", "index": index, "content": self._file(index, device, handed)})

    def after(self, event: Event) -> None:
        """Tell this when all that is on its way now has come."""
        self._begin(lambda: event)

    def arrived(self) -> None:
        """One of its events was heard."""
        self.coming -= 1

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, bring: Callable[[], Event]) -> None:
        self.coming += 1

        def run() -> None:
            try:
                event = bring()
            except Exception as error:  # the machine it lay on is gone, or the disk here is full
                event = {"kind": "not_home", "error": error}
            self._tell({**event, "homecoming": True})

        self._thread.submit(run)

    def _outcome(self, index: int, device: Device, end: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            if "value" in end and "inline" not in end["value"]:
                found["value"] = self._file(index, device, end["value"], "value")
        except Exception as error:
            return {"lost": error}
        try:
            if "files" in end:
                found["directory"] = str(self._directory(index, device, end["files"]))
        except Exception as error:  # the value is what counts
            found["note"] = f"what it left in trial.dir could not be brought home: {error}"
        return found

    def _file(self, index: int, device: Device, handed: dict[str, Any], what: str = "checkpoint") -> Content:
        # a checkpoint never takes the place of another, which the journal still tells of
        path = self._record.path(index, f"{secrets.token_hex(4)}.{what}" if what == "checkpoint" else what)
        self._engine.bring(device, handed, path)
        return Content(tuple(handed["sizes"]), file=str(path))

    def _directory(self, index: int, device: Device, handed: dict[str, Any]) -> Path:
        directory, archive = self._record.path(index, "dir"), self._record.path(index, "tar")
        self._engine.bring(device, handed, archive)
        shutil.rmtree(directory, ignore_errors=True)
        with tarfile.open(archive) as files:
            _unpack(files, directory)
        archive.unlink()
        return directory


def _unpack(archive: tarfile.TarFile, directory: Path) -> None:
    """Files and directories; what is neither, such as a link or a pipe, or would land elsewhere, stays behind.

    By hand, since tarfile's own filters are not in every Python 3.11.
    """
    directory.mkdir()
    for member in archive:
        target = (directory / member.name).resolve()
        if not target.is_relative_to(directory.resolve()):
            continue
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
        elif member.isfile() and (content := archive.extractfile(member)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                shutil.copyfileobj(content, file)
