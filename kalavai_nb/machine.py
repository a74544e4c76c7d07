"""The process of one machine: it forks the head (where this machine has it) and a worker for each device.

Whoever lends the machine started it, and writes JSON lines to its standard input: each an `Order`, the state that is
wanted from then on. What comes of it is said in JSON lines on standard output. When standard input closes, or the
process that started this one is gone, all ends. A worker that dies is started again while its device is to be lent.

This process imports Dask once and stays single-threaded, so that a worker is forked in milliseconds. A fork server
beside it imports torch and ipykernel meanwhile; ranks and trials are forked from that one, never from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypedDict

from kalavai_nb.identity import Identity
from kalavai_nb.state import Device
from kalavai_nb.worker.child import end_with_parent, share_fork_server, start_fork_server
from kalavai_nb.worker.seat import Seat

LOOK_SECONDS = 1.0
CLOSE_SECONDS = 5.0
# an IPC socket's path may have 107 bytes
LONGEST_DIRECTORY = 60
MOST_LINE_BYTES = 1 << 20

Process = multiprocessing.process.BaseProcess
_context = multiprocessing.get_context("fork")


class HeadOrder(TypedDict):
    """What a head needs to know: the pool's name, where to listen, its certificate, its ledger's patience.

    ``denied`` are the names of members that were revoked.
    """

    pool: str
    host: str
    port: int
    idle_seconds: float
    away_seconds: float
    identity: dict[str, str]
    denied: list[str]


class Order(TypedDict):
    """What a machine is to be from now on.

    ``head`` in the first order, where the machine is to run the head; else ``address`` is where the head is from here.
    ``devices`` are to be lent, those of ``leaving`` for so long as what runs there may take: {id: why, grace_seconds}.
    ``contacts`` has for each device the port that its worker listens at and the address that leads there from the head;
    without one, the head is on this machine. ``limits`` are what the owner lends of each (see `Guard`). ``proxy``,
    ``agent`` and ``listens`` say how the machine stands in its pool (see `Site`); ``measure`` has devices timed first.
    """

    head: HeadOrder | None
    address: str
    identity: dict[str, str]
    devices: list[dict[str, Any]]
    contacts: dict[str, tuple[int, str]]
    leaving: dict[str, dict[str, Any]]
    limits: dict[str, dict[str, Any]]
    proxy: int
    agent: str
    listens: bool
    cwd: str
    measure: bool


def main() -> None:
    """Entry point of ``python -m kalavai_nb.machine``. Says the head's address in its first line."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_fork_server()
    import distributed  # noqa: F401  (what the forked processes share)

    import kalavai_nb.head.serve
    import kalavai_nb.worker.serve  # noqa: F401

    gc.freeze()
    directory = _scratch()
    try:
        _Machine(directory, parent).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Machine:
    """The head and the workers of this machine, as the last order wants them."""

    def __init__(self, directory: Path, parent: int) -> None:
        self._directory, self._parent = directory, parent
        self._head: Process | None = None
        self._address = ""
        self._order: Order | None = None
        self._seats: dict[str, Seat] = {}
        self._pending = b""
        self._said: dict[str, str] = {}

    def run(self) -> None:
        """Until there is nobody left who wants it, or the head has ended."""
        try:
            while os.getppid() == self._parent and (self._head is None or self._head.is_alive()):
                ends = [end for seat in self._seats.values() for end in seat.ends()]
                ready = wait([sys.stdin.fileno(), *ends], timeout=LOOK_SECONDS)
                if sys.stdin.fileno() in ready and not self._hear():
                    return
                for seat in self._seats.values():
                    seat.look(ready)
                if self._order:
                    self._fill(self._order)
                self._tell()
        finally:
            _end([seat.process for seat in self._seats.values() if seat.process])
            _end([self._head] if self._head else [])

    def _hear(self) -> bool:
        """Take what was written; False where nothing will be any more."""
        content = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self._pending = (self._pending + content).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        return bool(content) and len(self._pending) < MOST_LINE_BYTES

    def _obey(self, order: Order) -> None:
        # ranks find the notebook's files and modules where the notebook does
        with contextlib.suppress(OSError):
            os.chdir(order["cwd"])
        if order["head"] and self._head is None:
            desk = str(self._directory / "desk")
            self._head, self._address = _start_head(order["head"], desk)
            self._say({"address": self._address, "head": self._head.pid, "desk": desk})
        elif self._order is None:
            self._say({"address": order["address"], "head": None})
        if order["measure"]:
            from kalavai_nb.worker.speed import timed

            devices = [Device(**fields) for fields in order["devices"]]
            environments = [_environment(device, len(devices)) for device in devices]
            order["devices"] = [asdict(device) for device in timed(devices, environments)]
        self._order = {**order, "address": self._address or order["address"]}

    def _fill(self, order: Order) -> None:
        """Have a worker for each device that is wanted, and none for others."""
        wanted = {fields["id"]: fields for fields in order["devices"]}
        for id in [id for id in self._seats if id not in wanted]:
            self._seats.pop(id).end()
        site = {name: order[name] for name in ("proxy", "agent", "listens")}
        for id, fields in wanted.items():
            seat = self._seats.setdefault(id, Seat(lambda *arguments: _fork(_worker, *arguments)))
            device = Device(**fields)
            seat.fill(
                device,
                leaving=order["leaving"].get(id),
                address=order["address"],
                contact=order["contacts"].get(id),
                arguments=(len(wanted), self._directory, _environment(device, len(wanted))),
                settings={"identity": order["identity"], "limits": order["limits"].get(id, {}), "site": site},
            )

    def _tell(self) -> None:
        """Say how the devices are, where that has changed."""
        states = {id: seat.state for id, seat in self._seats.items()}
        if states != self._said:
            self._said = states
            self._say({"devices": states})

    def _say(self, report: dict[str, Any]) -> None:
        # whoever started this may be gone, and that is noticed in the next round
        with contextlib.suppress(OSError):
            print(json.dumps(report), flush=True)


def _start_head(order: HeadOrder, desk: str) -> tuple[Process, str]:
    receiver, sender = _context.Pipe(duplex=False)
    head = _fork(_head, order, desk, sender)
    sender.close()
    return head, receiver.recv()


def _fork(target: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Process:
    process = _context.Process(target=_enter, args=(target, *arguments), daemon=False)
    process.start()
    return process


def _enter(target: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """First code of a forked process: a session of its own, and an end when the machine's process ends."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(sys.stdin.fileno())
    end_with_parent()
    share_fork_server()
    asyncio.run(target(*arguments))
    # what is left belongs to Dask and multiprocessing, and nobody waits for it
    os._exit(0)


async def _head(order: HeadOrder, desk: str, sender: Connection) -> None:
    from kalavai_nb.head.serve import serve

    identity = Identity(**order["identity"])
    listen = (order["pool"], order["host"], order["port"], order["idle_seconds"], order["away_seconds"])
    await serve(*listen, identity, order["denied"], Path(desk), sender.send)


async def _worker(*arguments: Any) -> None:
    from kalavai_nb.worker.serve import serve

    await serve(*arguments)


def _end(processes: list[Process]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + CLOSE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()


def _environment(device: Device, devices_here: int) -> dict[str, str]:
    """What children of this device's worker find in their environment, beside what their cell adds."""
    threads = max(1, (os.cpu_count() or 1) // devices_here)
    return {"OMP_NUM_THREADS": str(threads)} if device.kind == "cpu" else {}


def _scratch() -> Path:
    directory = tempfile.mkdtemp(prefix="kalavai-")
    if len(directory) > LONGEST_DIRECTORY:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="kalavai-", dir="/tmp")
    return Path(directory)


if __name__ == "__main__":
    main()
