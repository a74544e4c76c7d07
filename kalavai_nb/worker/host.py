"""The plugin in each worker: starts and drives child processes for owners. Runs no user code itself.

Methods named ``kn_*`` are called through the head: coroutines reply, the others are messages. What children say goes
to their owner's topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from kalavai_nb.blobs import BlobStore, clear_parts
from kalavai_nb.head.config import topic
from kalavai_nb.identity import Identity
from kalavai_nb.reading import Machine, Reading
from kalavai_nb.roads import LOOPBACK, Site, interface_of
from kalavai_nb.state import Device
from kalavai_nb.worker.child import fork_server_ready, living_children
from kalavai_nb.worker.control import IDENTITY
from kalavai_nb.worker.devices import visible
from kalavai_nb.worker.handlers import register
from kalavai_nb.worker.outbox import Outbox
from kalavai_nb.worker.quarters import Quarters
from kalavai_nb.worker.rank import Order, free_port
from kalavai_nb.worker.ranks import RankProcess
from kalavai_nb.worker.readings import reader_of
from kalavai_nb.worker.readings.cpu import CpuReader
from kalavai_nb.worker.readings.machine import MachineReader
from kalavai_nb.worker.readings.sampler import Sampler
from kalavai_nb.worker.runner import log_tail
from kalavai_nb.worker.stages import Stages
from kalavai_nb.worker.trials import Trials

INLINE_BYTES = 1 << 20
COMPARED = ("kalavai-nb", "torch", "numpy", "pandas", "scikit-learn", "transformers", "cloudpickle", "ipykernel")


class Host(WorkerPlugin):
    """The children of one worker, by owner."""

    name = "kalavai-host"

    def __init__(
        self,
        device: Device,
        devices_here: int,
        machine_directory: Path,
        environment: dict[str, str],
        site: Site,
        identity: Identity,
    ) -> None:
        self.device = device
        self._reader, self._machine = reader_of(device, living_children, devices_here), MachineReader()
        self._quarters = Quarters(machine_directory)
        directory = self._quarters.directory
        self._environment = environment
        self._blobs = BlobStore(machine_directory / "blobs")
        clear_parts(self._blobs.directory)
        self._ranks: dict[str, RankProcess] = {}
        self._trials = Trials(directory, self._blobs, environment)
        self._stages = Stages(directory, machine_directory / IDENTITY, site, identity, environment)
        self._tasks: set[asyncio.Task[Any]] = set()

    def stand(self, site: Site) -> None:
        """The machine stands otherwise in its pool from now on."""
        self._stages.site = site

    def setup(self, worker: Worker) -> None:
        self.worker = worker
        register(self, worker)
        loop = asyncio.get_running_loop()

        def hear(reading: Reading, machine: Machine) -> None:
            loop.call_soon_threadsafe(self._tell_reading, reading, machine)

        self._sampler = Sampler(lambda: (self._reader.read(), self._machine.read()), hear, self._reader.close)
        self._sampler.start()

    async def teardown(self, worker: Worker) -> None:
        self._sampler.close()
        await asyncio.gather(*(rank.close() for rank in self._ranks.values()))
        await asyncio.gather(self._trials.end(everything=True), self._stages.end(everything=True))
        await asyncio.to_thread(self._quarters.close)

    def lend(self, memory_bytes: int) -> None:
        """So much of the machine's memory is a stand-in's from now on; a GPU knows its own."""
        if isinstance(self._reader, CpuReader):
            self._reader.memory_bytes = memory_bytes

    # content

    async def kn_store(self) -> str:
        """Where the blobs are, for an owner on this very machine."""
        return str(self._blobs.directory)

    async def kn_missing(self, digests: list[str], owner: str) -> list[str]:
        """Those that are to be sent. The owner counts on all of them from now on."""
        return [digest for digest in digests if not self._blobs.hold(digest, owner)]

    async def kn_put(self, **piece: Any) -> None:
        await asyncio.to_thread(self._blobs.write, **piece)

    async def kn_get(self, digest: str, offset: int, length: int) -> bytes:
        return await asyncio.to_thread(self._blobs.read, digest, offset, length)

    def kn_drop(self, digests: list[str], owner: str) -> None:
        for digest in digests:
            self._blobs.drop(digest, owner)

    # ranks

    async def kn_start(self, owner: str, lease: str, selectors: list[str]) -> dict[str, Any]:
        """Start a rank; its name in later calls is ``generation``."""
        await fork_server_ready()
        rank = RankProcess(self._quarters.directory, self._rank_environment(selectors), lease, owner)
        self._ranks[rank.generation] = rank
        rank.child.ended.add_done_callback(lambda _: self._on_rank_end(rank))
        try:
            await rank.start()
        except (RuntimeError, OSError, TimeoutError) as error:
            return {"gone": f"a rank on {self.device} did not start: {error}"}
        return {"generation": rank.generation, "pid": rank.child.pid, "port": free_port()}

    def kn_run(self, owner: str, generation: str, run: str, code: str, order: dict[str, Any]) -> None:
        """Begin a cell. Its outputs and its end are events."""
        outbox = Outbox(self._teller(owner), kind="output", run=run, rank=order["rank"])
        rank = self._ranks.get(generation)
        if rank and rank.run == run:
            # an owner that was interrupted while it told us cannot know whether it did, and tells it again
            return
        if rank is None or rank.outbox is not None:
            outbox.end({"status": "died", "how": "had ended before the cell began"})
            return
        order["take"] = {
            name: (str(self._blobs.path(digest)), digest, sizes) for name, (digest, sizes) in order["take"].items()
        }
        order["env"].update(_interfaces(order.pop("address", "")))
        filled: Order = {**order, "blobs": str(self._blobs.directory)}  # type: ignore[typeddict-item]
        rank.run = run
        self._later(rank.execute(code, filled, outbox))

    def kn_interrupt(self, generations: list[str], reason: str) -> None:
        for generation in generations:
            if rank := self._ranks.get(generation):
                rank.interrupt(reason)

    async def kn_end_ranks(self, lease: str = "", generations: tuple[str, ...] = ()) -> None:
        """End the ranks of a lease, or those named."""
        await self._close(
            [r for r in self._ranks.values() if (lease and r.lease == lease) or r.generation in generations]
        )

    async def kn_end_owner(self, owner: str) -> None:
        """End all that an owner has here."""
        mine = [rank for rank in self._ranks.values() if rank.owner == owner]
        await asyncio.gather(self._close(mine), self._trials.end(owner=owner), self._stages.end(owner=owner))
        await asyncio.to_thread(self._blobs.let_go, owner)

    # trials

    def kn_trials(
        self,
        owner: str,
        run: str,
        lease: str,
        selectors: list[str],
        options: dict[str, Any],
        uses_torch: bool,
        orders: list[Any],
    ) -> None:
        """Begin trials on a lease, one after another. What becomes of them are events."""
        if uses_torch:
            self._trials.warm()

        def send(chunk: dict[str, Any]) -> None:
            self.worker.log_event(topic(owner), chunk)

        self._trials.give(owner, run, lease, orders, options, self._visible(selectors), send)

    def kn_stop_trial(self, lease: str, index: int, reason: str) -> None:
        """Tell a trial to end; killed where it has not after 5 s."""
        self._trials.stop(lease, index, reason)

    def kn_answer(self, lease: str, index: int, step: int, stop: str) -> None:
        """The verdict about a trial's report; ``stop`` is the reason to end, or empty."""
        self._trials.answer(lease, index, step, stop)

    def kn_end_trials(self, lease: str) -> None:
        """End all trials of a lease at once."""
        self._trials.end(lease=lease)

    async def kn_log(self, lease: str) -> str:
        """What the trial that runs on a lease has written so far."""
        path = self._trials.log_path(lease)
        return await asyncio.to_thread(log_tail, path) if path else ""

    # stages of models

    def kn_stage(self, owner: str, run: str, stage: str, selectors: list[str], key: str, instead_of: str) -> None:
        """Start the process of a stage, after the end of another. What it says are events of its ``run``."""

        def send(said: dict[str, Any]) -> None:
            self.worker.log_event(topic(owner), {"kind": "stage", "run": run, "stage": stage, **said})

        self._later(self._stages.start(owner, stage, key, instead_of, self._visible(selectors), send))

    def kn_stage_order(self, stage: str, order: dict[str, Any]) -> None:
        """Tell a stage what to do."""
        self._stages.tell(stage, order)

    def kn_stage_end(self, stage: str) -> None:
        """End a stage at once. That it died is the last event of it."""
        self._later(self._stages.end(stage=stage))

    # about this machine

    async def kn_versions(self) -> dict[str, str]:
        return versions()

    # inside

    def _tell_reading(self, reading: Reading, machine: Machine) -> None:
        said = {"op": "kn_reading", "device": self.device.id, "reading": reading.to_fields(), "machine": vars(machine)}
        # while the worker comes and goes there is no stream to its head
        with contextlib.suppress(CommClosedError, TypeError):
            self.worker.batched_stream.send(said)

    def _rank_environment(self, selectors: list[str]) -> dict[str, str]:
        return {**self._environment, **self._visible(selectors)}

    def _visible(self, selectors: list[str]) -> dict[str, str]:
        return visible(self.device, selectors)

    def _teller(self, owner: str) -> Any:
        def tell(event: dict[str, Any]) -> None:
            report = (event.get("end") or {}).get("kalavai") or {}
            try:
                self._hand_over(owner, list(report.get("out", {}).values()))
            except OSError as error:
                # without an end, the cell would be waited for without one
                said = f"the cell ran to its end, but what it hands out could not be read on its machine: {error}"
                failed = {"status": "error", "ename": "OSError", "evalue": said, "traceback": [f"OSError: {said}"]}
                event["end"] = {**failed, "kalavai": {**report, "out": {}}}
            self.worker.log_event(topic(owner), event)

        return tell

    def _hand_over(self, owner: str, handed: list[dict[str, Any]]) -> None:
        """Small values travel in the event itself; large ones stay here until they are fetched or the owner goes."""
        for value in handed:
            if sum(value["sizes"]) <= INLINE_BYTES:
                path = self._blobs.path(value["digest"])
                value["inline"] = path.read_bytes()
                path.unlink()
            else:
                self._blobs.hold(value["digest"], owner)

    def _on_rank_end(self, rank: RankProcess) -> None:
        ending = rank.child.ended.result()
        if self._ranks.pop(rank.generation, None) and rank.outbox is None:
            event = {"kind": "died", "generation": rank.generation, "how": str(ending), "tail": ending.tail}
            self.worker.log_event(topic(rank.owner), {**event, "out_of_memory": ending.out_of_memory})
            self._later(rank.close())

    async def _close(self, ranks: list[RankProcess]) -> None:
        for rank in ranks:
            self._ranks.pop(rank.generation, None)
        await asyncio.gather(*(rank.close() for rank in ranks))

    def _later(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _interfaces(address: str) -> dict[str, str]:
    """By which interface torch talks to other ranks. It would look for the host's own name, which may lead nowhere."""
    interface = interface_of(address)
    if not interface:
        return {}
    gloo = {"GLOO_SOCKET_IFNAME": interface}
    return gloo if address == LOOPBACK else {**gloo, "NCCL_SOCKET_IFNAME": interface}


def versions() -> dict[str, str]:
    """Versions that should agree between a notebook and its ranks; a package that is not there is left out."""
    found = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "executable": sys.executable,
    }
    for name in COMPARED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
