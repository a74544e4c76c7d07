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

from kalavai_nb.worker.starting import begun, leave_main_module_out

PRELOAD = ["kalavai_nb.worker.preload"]
LOG_TAIL_BYTES = 16_000
# what tells the fork server to import more (see preload.py)
WARMTH = FOR_TRIALS, FOR_MODELS = signal.SIGUSR1, signal.SIGUSR2
# in a child's environment: which part of its GPU's memory torch may take
MEMORY_FRACTION = "KALAVAI_MEMORY_FRACTION"

_context = multiprocessing.get_context("forkserver")
_is_lazy = False


def start_fork_server() -> None:
    """Start the machine's fork server. Returns at once; it imports while the caller goes on."""
    _context.set_forkserver_preload(PRELOAD)
    # inherited by the server: it must not end of these signals before it can handle them
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (WARMTH if here else ())}
    forkserver.ensure_running()
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)


def use_own_fork_server() -> None:
    """In a worker that others started: a fork server of its own, from its first child on, that ends when it does."""
    global _is_lazy
    server: Any = forkserver._forkserver
    if server._forkserver_pid is None:
        # the one that this process came from itself is none of ours
        server._forkserver_address = server._forkserver_alive_fd = None
    leave_main_module_out()
    _is_lazy = True


async def fork_server_ready() -> None:
    """Return when children start at once. A fork server that is not running yet imports for seconds."""
    if _is_lazy:
        _start_if_lazy()
        await asyncio.to_thread(_ask_for_nothing)


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
    _warm(FOR_TRIALS)


async def warm_for_models() -> None:
    """Let the fork server import what stages import, and wait for it: seconds the first time, nothing after it."""
    await asyncio.to_thread(_warm, FOR_MODELS)
    await asyncio.to_thread(_ask_for_nothing)


def _warm(number: signal.Signals) -> None:
    _start_if_lazy()
    if pid := getattr(forkserver._forkserver, "_forkserver_pid", None):
        # a first child shows that the server has come so far as to handle the signal
        _ask_for_nothing()
        os.kill(pid, number)


def _ask_for_nothing() -> None:
    _started(_nothing).join()


def _started(target: Callable[..., None], *arguments: Any) -> Any:
    _start_if_lazy()
    return begun(target, *arguments)


def _start_if_lazy() -> None:
    if _is_lazy and getattr(forkserver._forkserver, "_forkserver_pid", None) is None:
        start_fork_server()


def _nothing() -> None:
    pass


def pipe() -> tuple[Connection, Connection]:
    """(receiving end, sending end) of a pipe that can be given to a child."""
    return _context.Pipe(duplex=False)


@dataclass(frozen=True)
class Ending:
    """How a child ended; ``reason`` is why it had to, where it took more than is lent."""

    exitcode: int
    out_of_memory: bool
    tail: str
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"was ended: {self.reason}"
        if self.exitcode < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-self.exitcode).name}"
        return f"exited with code {self.exitcode}"


_living: dict[int, Child] = {}


def living_children() -> list[int]:
    """The ids of all children of this worker that have not ended: ranks, trials, stages. For any thread."""
    return list(_living)


def end_child(pid: int, reason: str) -> None:
    """End this child, if it has not ended, for a reason that whoever waits for it is to hear."""
    if child := _living.get(pid):
        child.end(reason)


def begin(target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str], log: Path) -> Any:
    """A child for a process without an event loop, which has to end it; `Child` is the same for workers."""
    return _started(_enter, target, args, env, str(log))


class Child:
    """One child process, seen from the worker's event loop."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str], log: Path) -> None:
        self._log = log
        self._out_of_memory_kills = _out_of_memory_kills()
        self._reason = ""
        self.process = begin(target, args, env, log)
        assert self.process.pid is not None
        self.pid = self.process.pid
        _living[self.pid] = self
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self.process.sentinel, self._on_end)

    def signal(self, number: int) -> None:
        """Send a signal to the child's whole process group."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def end(self, reason: str) -> None:
        """SIGKILL, for a reason that its `Ending` says."""
        self._reason = self._reason or reason
        self.signal(signal.SIGKILL)

    async def kill(self) -> Ending:
        self.signal(signal.SIGKILL)
        # before it made a group of its own, only the process itself can be reached
        if not self.ended.done():
            self.process.kill()
        return await asyncio.shield(self.ended)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.process.sentinel)
        self.process.join()
        _living.pop(self.pid, None)
        # what the child left running in its group (a data loader, a shell command) goes with it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        exitcode = self.process.exitcode or 0
        out_of_memory = exitcode == -signal.SIGKILL and _out_of_memory_kills() > self._out_of_memory_kills
        if not self.ended.done():
            # where the reason is known, what it wrote last says nothing of it
            known = Ending(exitcode, False, "", self._reason)
            self.ended.set_result(known if self._reason else Ending(exitcode, out_of_memory, self._tail()))

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
    for number in WARMTH:
        signal.signal(number, signal.SIG_DFL)
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
    _limit_memory(env)
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


def _limit_memory(env: dict[str, str]) -> None:
    # when CUDA is initialised, which a child that needs no GPU never does
    torch = sys.modules.get("torch")
    if torch and MEMORY_FRACTION in env:
        fraction = float(env[MEMORY_FRACTION])
        torch.cuda._lazy_call(lambda: torch.cuda.set_per_process_memory_fraction(fraction, 0))


def _out_of_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory since boot (Linux)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
