"""One lease of a sweep on a worker: its trials one after another, each in the process that it should have."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalavai_nb.worker import trial
from kalavai_nb.worker.child import Child, Ending
from kalavai_nb.worker.wire import Message, messages, packed

# a trial that took longer had its process to itself; shorter ones may share one
SHORT_SECONDS = 1.0
# one that reports is given some time to end by itself before it is interrupted; any is killed in the end
PATIENCE_SECONDS = 3.0
KILL_SECONDS = 5.0
TIMEOUT_GRACE_SECONDS = 0.5
EXIT_SECONDS = 2.0
LOG_BYTES = 1 << 16


@dataclass(frozen=True)
class RunnerOptions:
    """How the trials of a lease are run: ``isolate`` is True, False or "auto" (short ones share a process)."""

    isolate: bool | str
    timeout_seconds: float | None
    environment: Mapping[str, str]


class Runner:
    """Runs what it is given until it is closed; ``tell`` hears what becomes of it."""

    def __init__(
        self,
        directory: Path,
        blobs: Path,
        options: RunnerOptions,
        tell: Callable[[Message], None],
        before: Callable[[], Any],
    ) -> None:
        self._directory = directory / f"trials-{secrets.token_hex(4)}"
        self._directory.mkdir(mode=0o700)
        self._blobs, self._options, self._tell, self._before = str(blobs), options, tell, before
        self._queue: deque[Message] = deque()
        self._process: _Process | None = None
        self._spare: _Process | None = None
        self._current: Message | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._work: asyncio.Task[None] | None = None
        self.log: Path | None = None

    def give(self, orders: list[Message]) -> None:
        """Queue these trials."""
        self._queue.extend(orders)
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._run())

    def stop(self, index: int, reason: str) -> None:
        """Tell a trial to end: it hears of it at its next report, is interrupted, and killed after 5 s.

        One that has not begun is dropped, and that is told: so whoever stops it knows that it never will.
        """
        if any(order["index"] == index for order in self._queue):
            self._queue = deque(order for order in self._queue if order["index"] != index)
            self._tell({"kind": "dropped", "index": index})
        elif self._current and self._current["index"] == index and self._stopping is None and self._process:
            self._stopping = asyncio.ensure_future(self._escalate(self._process, self._current, reason))

    def answer(self, index: int, step: int, stop: str) -> None:
        """The notebook's verdict about a report of the trial that runs."""
        if self._current and self._current["index"] == index and self._process:
            self._process.write({"verdict": step, "stop": stop})

    async def close(self) -> None:
        """End what runs. Nothing is told any more."""
        for task in (self._work, self._stopping):
            if task:
                task.cancel()
        for process in (self._process, self._spare):
            if process:
                await process.child.kill()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    # inside

    async def _run(self) -> None:
        await self._before()
        while self._queue:
            order = self._current = self._queue.popleft()
            self.log = self._directory / f"{order['index']}.log"
            order["log"] = str(self.log)
            try:
                process = await self._ready()
            except OSError as error:
                end = {"kind": "end", "index": order["index"], "status": "died", "how": f"did not start: {error}"}
            else:
                self._tell({"kind": "began", "index": order["index"]})
                end = await self._converse(process, order)
                if not self._may_go_on(end):
                    # its memory on the device is free before the next trial begins
                    await process.exit()
                    self._process = None
            if self._stopping:
                self._stopping.cancel()
            self._current = self._stopping = None
            end["log"] = log_tail(self.log) or end.get("log", "")
            self.log.unlink(missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, order["directory"], ignore_errors=True)
            self._tell(end)

    async def _ready(self) -> _Process:
        """The process for the next trial: the one that may go on, the one that was prepared, or a new one."""
        if self._process is None:
            self._process, self._spare = self._spare or self._start(), None
        await self._process.connect()
        return self._process

    def _start(self) -> _Process:
        log = self._directory / f"{secrets.token_hex(4)}.start"
        return _Process(self._blobs, {**self._options.environment}, log)

    async def _prepare_spare(self) -> None:
        """Fork the next trial's process while this one runs."""
        await asyncio.sleep(0 if self._options.isolate is True else SHORT_SECONDS)
        if self._spare is None:
            self._spare = self._start()

    async def _converse(self, process: _Process, order: Message) -> Message:
        """Run one trial in this process; its end."""
        preparing = asyncio.ensure_future(self._prepare_spare()) if self._options.isolate else None
        process.write(order)
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                return await self._listen(process, order)
        except TimeoutError:
            process.child.signal(signal.SIGINT)
            await asyncio.sleep(TIMEOUT_GRACE_SECONDS)
            await process.child.kill()
            seconds = self._options.timeout_seconds
            return {"kind": "end", "index": order["index"], "status": "timeout", "seconds": seconds}
        finally:
            if preparing:
                preparing.cancel()

    async def _listen(self, process: _Process, order: Message) -> Message:
        async for message in process.said:
            if message["kind"] == "end":
                return message
            self._tell(message)
        ending = await process.child.ended
        status = "stopped" if self._stopping else "died"
        end = {"kind": "end", "index": order["index"], "status": status, "how": str(ending), "log": ending.tail}
        # one that took more than is lent may do better where more is
        return {**end, "out_of_memory": ending.out_of_memory, "gpu_out_of_memory": bool(ending.reason)}

    async def _escalate(self, process: _Process, order: Message, reason: str) -> None:
        process.write({"stop": reason})
        await asyncio.sleep(PATIENCE_SECONDS if order["takes_trial"] else 0)
        process.child.signal(signal.SIGINT)
        await asyncio.sleep(KILL_SECONDS - PATIENCE_SECONDS if order["takes_trial"] else KILL_SECONDS)
        process.child.signal(signal.SIGKILL)

    def _may_go_on(self, end: Message) -> bool:
        """Whether the process that ended a trial like this may run another one."""
        if self._options.isolate == "auto":
            return bool(end["status"] == "ok" and end["seconds"] < SHORT_SECONDS)
        return not self._options.isolate and end["status"] in ("ok", "error")


class _Process:
    """The process of one or more trials, with the wire to it."""

    def __init__(self, blobs: str, environment: dict[str, str], log: Path) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.child = Child(trial.main, (theirs, blobs), environment, log)
        theirs.close()
        self.said: AsyncIterator[Message]
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        if self._writer is None:
            reader, self._writer = await asyncio.open_connection(sock=self._ours)
            self.said = messages(reader)

    def write(self, message: Message) -> None:
        # where it is gone, its end says so
        if self._writer:
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._writer.write(packed(message))

    async def exit(self) -> Ending:
        """Let it end by itself, so that what it holds is flushed; kill it where that takes long."""
        if self._writer:
            self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                return await asyncio.shield(self.child.ended)
        return await self.child.kill()


def log_tail(log: Path) -> str:
    """The end of a log, and how much came before it."""
    try:
        size = log.stat().st_size
        with open(log, "rb") as file:
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text if size <= LOG_BYTES else f"… {size - LOG_BYTES} bytes before this are left out\n{text}"
