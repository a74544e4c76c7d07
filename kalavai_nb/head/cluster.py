"""The ledger in the scheduler of somebody's Dask cluster, where it was installed by the first owner that came.

What is different there: workers were started by others, and say which device they have when they have our plugin
(worker/lender.py); owners and workers get their certificates for the connections between stages from here, as the
cluster's own ones, if it has any, are none of ours; and the scheduler's settings are not ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from kalavai_nb.fields import made, text
from kalavai_nb.head.config import topic
from kalavai_nb.head.plugin import LedgerPlugin, Message
from kalavai_nb.head.roads import RoadsPlugin
from kalavai_nb.identity import Identity
from kalavai_nb.state import Device

if TYPE_CHECKING:
    from distributed import Scheduler


KEPT_EVENTS = 8


class ClusterLedgerPlugin(LedgerPlugin):
    """The ledger of a pool on a Dask cluster. A second one is not installed: the first goes on.

    ``identities`` are those of all users and of all workers.
    """

    idempotent = True

    def __init__(self, pool: str, identities: Mapping[str, Identity], idle_seconds: float) -> None:
        super().__init__(pool, identities["user"].pool_id, idle_seconds)
        self._identities, self._idle_seconds = identities, idle_seconds
        self._claims: dict[str, Device] = {}
        self._answers: dict[str, str] = {}

    def __reduce__(self) -> Any:
        return type(self), (self.pool, self._identities, self._idle_seconds)

    async def start(self, scheduler: Scheduler) -> None:
        await super().start(scheduler)
        # nothing is measured here: who runs workers that must reach each other has seen to it
        await RoadsPlugin(self).start(scheduler)
        for call in (self.kn_enter, self.kn_claim, self.kn_lend, self.kn_arrivals):
            scheduler.handlers[call.__name__] = call

    def remove_worker(self, scheduler: Scheduler, worker: str, **why: Any) -> None:
        self._claims.pop(worker, None)
        self._answers.pop(worker, None)
        super().remove_worker(scheduler, worker, **why)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        super().remove_client(scheduler, client)
        scheduler._broker._topics.pop(topic(client), None)

    async def kn_hello(self, owner: str, label: str) -> Message:
        # a scheduler keeps a thousand events of each topic: what ranks print must not pile up there
        self.scheduler._broker._topics[topic(owner)].events = deque(maxlen=KEPT_EVENTS)
        return await super().kn_hello(owner, label)

    def kn_reading(self, worker: str, device: str, reading: Message, machine: Message) -> None:
        super().kn_reading(worker, device, reading, machine)
        if any(lease.running for lease in self.ledger.leases.values()):
            self._stir()

    def kn_request(self, client: str, request: str, need: Message, then: list[tuple[str, Message]]) -> None:
        self._stir()
        super().kn_request(client, request, need, then)

    # what owners and workers ask

    async def kn_enter(self, role: str) -> Message:
        """The certificate for this role, and what is to be known of this scheduler."""
        self._stir()
        return {
            "id": self.id,
            "identity": asdict(self._identities[role]),
            "version": metadata.version("kalavai-nb"),
            "frozen_after_seconds": self.scheduler.worker_ttl,
        }

    async def kn_claim(self, worker: str, offers: list[Message], any_of_them: bool) -> Message:
        """Which of these devices the worker is to lend: its own, the first, or any that no other one lends.

        Without an answer it may ask again: a worker that is gone may not have been missed yet.
        """
        taken = {device.id: device.worker for device in (*self.ledger.devices.values(), *self._claims.values())}
        there = [made(Device, offer) for offer in offers]
        for device in there if any_of_them else there[:1]:
            if device.kind == "cpu":
                device = self._numbered(device, taken)
            if taken.get(device.id, worker) == worker:
                self._claims[worker] = replace(device, worker=worker)
                return {"device": asdict(self._claims[worker])}
        return {}

    async def kn_lend(self, worker: str, problem: str = "") -> None:
        """The worker is ready to lend what it has claimed, or says why it lends nothing."""
        device = self._claims.pop(worker, None)
        if worker in self.scheduler.workers:
            self._answers[worker] = text(problem)
            if device and not problem:
                for other in {each.machine for each in self.ledger.devices.values()} - {device.machine}:
                    self.ledger.set_links(device.machine, other, True)
                self.lend(device)

    async def kn_arrivals(self) -> dict[str, str | None]:
        """What each worker has said: nothing yet (None), that it lends its device (""), or why it lends nothing."""
        return {worker: self._answers.get(worker) for worker in self.scheduler.workers}

    def _stir(self) -> None:
        """A scheduler with an idle timeout sees tasks alone: without this, it would end in the middle of a cell."""
        self.scheduler._idle_transition_counter = -1

    def _numbered(self, device: Device, taken: Mapping[str, str]) -> Device:
        """A stand-in by a number that no other one of its machine has."""
        names = ((number, f"{device.machine}/cpu:{number}") for number in range(len(taken) + 1))
        number, name = next((number, name) for number, name in names if name not in taken)
        return replace(device, index=number, id=name)
