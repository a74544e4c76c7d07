"""The plugin of a worker that others started, in their Dask cluster: finds its device, and lends it by a `Host`.

Every worker of the cluster gets it, also those that come later, and one where kalavai_nb is missing or broken has to go
on as if nothing had been asked of it. So it is sent as a text that is evaluated there, it imports what it needs when
its worker is up, and what goes wrong is said to the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import threading
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distributed import Scheduler, Worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

if TYPE_CHECKING:
    from kalavai_nb.state import Device
    from kalavai_nb.worker.host import Host
    from kalavai_nb.worker.scratch import Scratch

logger = logging.getLogger(__name__)

LOADED = (
    "__import__('importlib').import_module('kalavai_nb.worker.lender').Lender()"
    " if __import__('importlib.util').util.find_spec('kalavai_nb')"
    " and __import__('importlib.util').util.find_spec('kalavai_nb.worker.lender')"
    " else __import__('distributed.diagnostics.plugin').diagnostics.plugin.WorkerPlugin()"
)
CLAIM_SECONDS = 0.3
# so often a worker asks for its own device alone: another one that has it may be gone, and not missed yet
PATIENT_CLAIMS = 4
ASK_SECONDS = 1.0
ASKS = 10


class Lender(WorkerPlugin):
    """Lends the device of one worker of a Dask cluster."""

    name = "kalavai-lender"
    idempotent = True

    def __init__(self) -> None:
        self._host: Host | None = None
        self._scratch: Scratch | None = None

    def __reduce__(self) -> Any:
        return eval, (LOADED,)

    def setup(self, worker: Worker) -> None:
        # not waited for: the worker is its cluster's, and no slower for us
        self._arriving = asyncio.ensure_future(self._arrive(worker))

    async def teardown(self, worker: Worker) -> None:
        self._arriving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._arriving
        if self._host:
            await self._host.teardown(worker)
        if self._scratch:
            self._scratch.close()

    async def _arrive(self, worker: Worker) -> None:
        try:
            problem = _unfit() or await self._lend(worker)
        except Exception as error:  # whatever is wrong here, the cluster's own work has nothing to do with it
            logger.warning("kalavai_nb cannot lend this worker's device", exc_info=True)
            problem = f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):
            await _ask(worker, "kn_lend", worker=worker.contact_address, problem=problem)

    async def _lend(self, worker: Worker) -> str:
        """Make all ready; returns why there is nothing to lend."""
        _leave_group()
        # what takes a second to import, and the worker goes on meanwhile
        await asyncio.to_thread(importlib.import_module, "kalavai_nb.worker.host")
        from kalavai_nb.identity import Identity
        from kalavai_nb.roads import Site
        from kalavai_nb.worker.child import use_own_fork_server
        from kalavai_nb.worker.devices import offered_devices, reachable_gpus
        from kalavai_nb.worker.host import Host
        from kalavai_nb.worker.readings.machine import cores
        from kalavai_nb.worker.scratch import Scratch

        entry = await _ask(worker, "kn_enter", role="worker")
        threads, parts = worker.state.nthreads, max(1, cores() // worker.state.nthreads)
        self._scratch = await asyncio.to_thread(lambda: Scratch(entry["id"], reachable_gpus()))
        offers = [
            replace(device, machine=self._scratch.machine, memory_bytes=_memory(device, worker, parts))
            for device in await asyncio.to_thread(offered_devices)
        ]
        device = await _claimed(worker, offers)
        if device is None:
            return f"each GPU that it sees ({len(offers)}) is lent by another worker of its machine"
        use_own_fork_server()
        directory, host = self._scratch.directory, urlsplit(worker.contact_address).hostname or ""
        environment = {"OMP_NUM_THREADS": str(threads)}
        self._host = Host(device, parts, directory, environment, Site(host=host), Identity(**entry["identity"]))
        self._host.setup(worker)
        return ""


async def _claimed(worker: Worker, offers: list[Device]) -> Device | None:
    """The device that the ledger wants from this worker."""
    from kalavai_nb.state import Device

    fields = [asdict(device) for device in offers]
    for claim in range(PATIENT_CLAIMS + 1):
        last = claim == PATIENT_CLAIMS
        reply = await _ask(worker, "kn_claim", worker=worker.contact_address, offers=fields, any_of_them=last)
        if "device" in reply:
            return Device(**reply["device"])
        await asyncio.sleep(CLAIM_SECONDS)
    return None


async def _ask(asking: Worker, call: str, /, **fields: Any) -> Any:
    """Ask the ledger, which may be busy: a connection that fails is tried again."""
    for left in reversed(range(ASKS)):
        try:
            return await getattr(asking.scheduler, call)(**fields)
        except OSError:
            if not left:
                raise
            await asyncio.sleep(ASK_SECONDS)


def _unfit() -> str:
    """Why a worker in this process cannot have children and signals of its own."""
    others = [worker for worker in Worker._instances if worker.status is Status.running]
    if len(others) > 1 or Scheduler._instances or threading.current_thread() is not threading.main_thread():
        return (
            "it shares its process with other workers, or with a notebook, and ranks and trials need a worker with a "
            "process of its own: LocalCluster(processes=True), or `dask worker --nworkers`"
        )
    return ""


def _leave_group() -> None:
    # ■ in a notebook sends SIGINT to its whole process group, with the workers of a LocalCluster in it
    if multiprocessing.parent_process():
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)


def _memory(device: Device, worker: Worker, parts: int) -> int:
    """A stand-in has what Dask gives its worker."""
    limit = worker.memory_manager.memory_limit if device.kind == "cpu" else None
    return int(limit or device.memory_bytes // (parts if device.kind == "cpu" else 1))
