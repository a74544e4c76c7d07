"""A child process of a worker: forked from the machine's fork server, in a session of its own, with its own log.

The fork server has torch and ipykernel imported, so a child starts in milliseconds and shares their memory with all
others. It never touches CUDA, and CUDA_VISIBLE_DEVICES is set before any code of a user runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOAD = ["kalavai_nb.worker.preload"]
LOG_TAIL_BYTES = 16_000

_context = multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Start the machine's fork server. Returns at once; it imports while the caller goes on."""
    _context.set_forkserver_preload(PRELOAD)
    # inherited by the server: it must not end of this signal before it can handle it
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def share_fork_server() -> None:
    """In a worker, which was forked from it: fork children from the machine's server too.

    multiprocessing hands a child the server's address, but `ensure_running` would start a second, cold server. It also
    has each child run the main module of its parent again, under another name: 15 ms, for nothing that a child needs.
    """
    sys.modules["__main__"] = types.ModuleType("__main__")
    server: Any = forkserver._forkserver
    if getattr(server, "_forkserver_address", None) and getattr(server, "_forkserver_alive_fd", None) is not None:
        server.ensure_running = lambda: None
    else:
        _context.set_forkserver_preload(PRELOAD)


def warm_fork_server() -> None:
    """Let the fork server import what trials import. Children that are asked for meanwhile wait for it, once."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid:
        # a first child shows that the server has come so far as to handle the signal
        probe = _context.Process(target=_nothing)
        probe.start()
        probe.join()
        os.kill(pid, signal.SIGUSR1)


def _nothing() -> None:
    pass


def pipe() -> tuple[Connection, Connection]:
    """(receiving end, sending end) of a pipe that can be given to a child."""
    return _context.Pipe(duplex=False)


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    exitcode: int
    out_of_memory: bool
    tail: str

    def __str__(self) -> str:
        if self.exitcode < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-self.exitcode).name}"
        return f"exited with code {self.exitcode}"


class Child:
    """One child process, seen from the worker's event loop."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str], log: Path) -> None:
        self._log = log
        self._out_of_memory_kills = _out_of_memory_kills()
        self.process = _context.Process(target=_enter, args=(target, args, env, str(log)), daemon=False)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self.process.sentinel, self._on_end)

    def signal(self, number: int) -> None:
        """Send a signal to the child's whole process group."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def kill(self) -> Ending:
        self.signal(signal.SIGKILL)
        # before it made a group of its own, only the process itself can be reached
        if not self.ended.done():
            self.process.kill()
        return await asyncio.shield(self.ended)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.process.sentinel)
        self.process.join()
        # what the child left running in its group (a data loader, a shell command) goes with it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        exitcode = self.process.exitcode or 0
        out_of_memory = exitcode == -signal.SIGKILL and _out_of_memory_kills() > self._out_of_memory_kills
        if not self.ended.done():
            self.ended.set_result(Ending(exitcode, out_of_memory, self._tail()))

    def _tail(self) -> str:
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, self._log.stat().st_size - LOG_TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def _enter(target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str], log: str) -> None:
    """First code of a child: leave the worker's session, take its own environment and log, end with the worker."""
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    os.environ.update(env)
    with open(log, "ab", buffering=0) as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    end_with_parent()
    _limit_threads(env)
    target(*args)


def end_with_parent() -> None:
    """End this process and its group when the process that asked for it ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(os.getpgrp(), signal.SIGKILL) if os.getpgrp() == os.getpid() else os._exit(1)

    threading.Thread(target=watch, name="kalavai-end-with-parent", daemon=True).start()


def _limit_threads(env: dict[str, str]) -> None:
    # torch was imported before the environment was set, so OMP_NUM_THREADS alone comes too late for it
    torch = sys.modules.get("torch")
    if torch and "OMP_NUM_THREADS" in env:
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))


def _out_of_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory since boot (Linux)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
