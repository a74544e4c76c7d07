"""The machine's process (`kalavai_nb.machine`), kept alive: orders go in, reports come out, and it is started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalavai_nb.errors import KalavaiError

if TYPE_CHECKING:
    from kalavai_nb.machine import HeadOrder, Order

CLOSE_SECONDS = 12.0
MOST_BYTES = 1 << 22
# one that has lived so long did not die of its start
_LIVED_SECONDS = 20.0
_LONGEST_PAUSE_SECONDS = 20.0
_TAIL_BYTES = 2000
_LAST_WORDS_SECONDS = 2.0
# how Dask begins its lines
_LOGGED = re.compile(r"^[\d-]+ [\d:,]+ - \S+ - [A-Z]+ - ")
_NOTED = re.compile(r" - (INFO|DEBUG) - ")

Report = dict[str, Any]


class MachineProcess:
    """``python -m kalavai_nb.machine`` as a child: it gets the last order again whenever it had to be started again.

    ``on_report`` hears each of its reports, ``on_loss`` why it ended where it was not asked to. ``head`` makes a part
    of the first order of each such process, where this machine has the head.
    """

    def __init__(
        self,
        log: Path,
        on_report: Callable[[Report], None],
        on_loss: Callable[[str], None],
        head: Callable[[], HeadOrder] | None = None,
    ) -> None:
        self._log, self._on_report, self._on_loss, self._head = log, on_report, on_loss, head
        self._process: asyncio.subprocess.Process | None = None
        self._order: Order | None = None
        self._is_told = False
        self._losses = 0
        self._keeper: asyncio.Task[None] | None = None
        self._is_closing = False

    @property
    def pid(self) -> int | None:
        """Its process, where it has one now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it: it imports what it needs, and waits for its first order."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    def send(self, order: Order) -> None:
        """This is what is wanted from now on."""
        self._order = order
        self._tell()

    async def close(self) -> None:
        """End it and all that it has started. Idempotent."""
        self._is_closing = True
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), CLOSE_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._keeper is not None:
            # it reads what is left in the pipe, so that it closes before the loop does
            await asyncio.wait({self._keeper}, timeout=_LAST_WORDS_SECONDS)
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None

    # inside

    async def _spawn(self) -> None:
        command = (sys.executable, "-m", "kalavai_nb.machine")
        # 0600: what user code prints may be anything
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=MOST_BYTES,
            )
        except OSError as error:
            raise KalavaiError(f"{' '.join(command)} cannot be started: {error}") from None
        finally:
            os.close(log)
        self._is_told = False

    def _tell(self) -> None:
        process = self._process
        if self._order is None or process is None or process.stdin is None or process.returncode is not None:
            return
        head = None if self._is_told or self._head is None else self._head()
        order: Order = {**self._order, "head": head}
        self._is_told = True
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _keep(self) -> None:
        while True:
            since = time.monotonic()
            assert self._process
            await self._listen(self._process)
            await self._process.wait()
            if self._is_closing:
                return
            self._losses = 1 if time.monotonic() - since > _LIVED_SECONDS else self._losses + 1
            how = _how(self._process.returncode, self._head is not None)
            self._on_loss(f"the process of this machine's workers ended: {how}{self._tail()}")
            await self._spawn_again()
            self._tell()

    async def _spawn_again(self) -> None:
        while True:
            # the first time at once, and one that cannot live at all not at full speed
            await asyncio.sleep(min(2.0 ** (self._losses - 1) - 1, _LONGEST_PAUSE_SECONDS))
            try:
                return await self._spawn()
            except KalavaiError as error:
                self._losses += 1
                self._on_loss(str(error))

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        with contextlib.suppress(ValueError, OSError):
            while line := await process.stdout.readline():
                with contextlib.suppress(json.JSONDecodeError):
                    report = json.loads(line)
                    if isinstance(report, dict):
                        self._on_report(report)

    def _tail(self) -> str:
        if self._losses < 2:
            return ""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            file.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            said = last_words(file.read().decode(errors="replace"))
            return f" (it said: {said}; {self._log} has all)" if said else f" ({self._log} may say why)"
        return ""


def last_words(log: str) -> str:
    """The last line that says what went wrong, if any does: not what Dask notes of all that goes well."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NOTED.search(line)]
    return _LOGGED.sub("", lines[-1]) if lines else ""


def _how(returncode: int | None, has_head: bool) -> str:
    """Why it ended, to be read after "ended: "."""
    if returncode == 0:
        # it ends in good order where what it is for is no more
        return "the head of the pool, which it had, was gone" if has_head else "it was told to"
    if returncode == -signal.SIGKILL:
        return "it was killed, by somebody or by the system, which does so when memory runs out"
    if returncode is not None and returncode < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"it was ended by {known.get(-returncode, f'signal {-returncode}')}"
    return f"it failed (status {returncode})"
