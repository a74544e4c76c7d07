"""The process of one machine: it forks the head (where this machine has it) and a worker for each device.

Started by whoever lends the machine, which writes one JSON line to its standard input (`Order`) and keeps that open:
when it closes, or when the process that started this one is gone, all of it ends. A worker that dies is started again.

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
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypedDict

from kalavai_nb.security import Identity
from kalavai_nb.state import Device
from kalavai_nb.worker.child import end_with_parent, share_fork_server, start_fork_server

LOOK_SECONDS = 1.0
CLOSE_SECONDS = 5.0
# an IPC socket's path may have 107 bytes
LONGEST_DIRECTORY = 60

Process = multiprocessing.process.BaseProcess
_context = multiprocessing.get_context("fork")


class HeadOrder(TypedDict):
    """What a head needs to know: the pool's name, where to listen, its certificate, its ledger's patience."""

    pool: str
    host: str
    port: int
    idle_seconds: float
    identity: dict[str, str]


class Order(TypedDict):
    """What a machine needs to know. ``head`` where it is to run the head; else the head's ``address``."""

    head: HeadOrder | None
    address: str
    identity: dict[str, str]
    devices: list[dict[str, Any]]
    cwd: str


def main() -> None:
    """Entry point of ``python -m kalavai_nb.machine``. Says the head's address in one JSON line."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_fork_server()
    import distributed  # noqa: F401  (what the forked processes share)

    import kalavai_nb.head
    import kalavai_nb.worker.host  # noqa: F401

    gc.freeze()
    line = sys.stdin.readline()
    if not line:
        return
    order: Order = json.loads(line)
    # ranks find the notebook's files and modules where the notebook does
    with contextlib.suppress(OSError):
        os.chdir(order["cwd"])
    directory = _scratch()
    try:
        _run(order, directory, parent)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(order: Order, directory: Path, parent: int) -> None:
    head, address = _start_head(order["head"]) if order["head"] else (None, order["address"])
    print(json.dumps({"address": address, "head": head.pid if head else None}), flush=True)
    devices = [Device(**device) for device in order["devices"]]

    def start(device: Device) -> Process:
        arguments = (device, address, Identity(**order["identity"]), directory, _environment(device, len(devices)))
        return _fork(_worker, *arguments)

    workers = {device: (time.monotonic(), start(device)) for device in devices}
    try:
        while os.getppid() == parent and (head is None or head.is_alive()):
            sentinels = [worker.sentinel for _, worker in workers.values()]
            ready = wait([sys.stdin.fileno(), *sentinels], timeout=LOOK_SECONDS)
            if sys.stdin.fileno() in ready and _at_end(sys.stdin.fileno()):
                return
            for device, (since, worker) in workers.items():
                if worker.sentinel in ready:
                    worker.join()
                    # one that cannot live is not started again and again at full speed
                    time.sleep(LOOK_SECONDS if time.monotonic() - since < LOOK_SECONDS else 0)
                    workers[device] = (time.monotonic(), start(device))
    finally:
        _end([worker for _, worker in workers.values()])
        _end([head] if head else [])


def _start_head(order: HeadOrder) -> tuple[Process, str]:
    receiver, sender = _context.Pipe(duplex=False)
    head = _fork(_head, order, sender)
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


async def _head(order: HeadOrder, sender: Connection) -> None:
    from kalavai_nb.head import serve

    identity = Identity(**order["identity"])
    await serve(order["pool"], order["host"], order["port"], order["idle_seconds"], identity, sender.send)


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


def _at_end(file: int) -> bool:
    return bool(select.select([file], [], [], 0)[0]) and not os.read(file, 4096)


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
