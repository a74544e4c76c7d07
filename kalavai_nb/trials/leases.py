"""The devices of a sweep: asked for one after another, kept as slots, given back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kalavai_nb.engine import Engine, Event
from kalavai_nb.errors import KalavaiError, NotEnoughDevices, PoolClosed
from kalavai_nb.state import Device, Need
from kalavai_nb.trials.slots import Slot


class Leases:
    """Requests under way. ``hear`` gets their events, on Dask's thread; all else is for the sweep's own thread."""

    def __init__(self, engine: Engine, hear: Callable[[Event], None]) -> None:
        self._engine, self._hear = engine, hear
        self._requests: dict[str, Need] = {}
        self._devices: dict[str, Device] = {}
        self._waiting_for: dict[str, str] = {}

    @property
    def waiting_for(self) -> str:
        """What the first request under way waits for; empty where nothing is waited for."""
        return next((self._waiting_for[request] for request in self._requests if request in self._waiting_for), "")

    def ask(self, wanted: Sequence[Need], room: int, prefer: tuple[str, ...]) -> None:
        """Have one request under way for each of these needs, and for no other; ``room`` at most."""
        for request in [request for request, need in self._requests.items() if need not in wanted]:
            del self._requests[request]
            self._engine.cancel(request)
        for need in wanted:
            if need not in self._requests.values() and len(self._requests) < room:
                self._requests[self._engine.request(replace(need, prefer=prefer), self._hear)] = need

    def hear_reason(self, event: Event) -> None:
        """Why a request waits."""
        self._waiting_for[event["request"]] = event["reason"]

    def grant(self, event: Event) -> Slot | None:
        """The slot that was granted; None where nobody wants it any more, and it was given back."""
        need = self._requests.pop(event["request"], None)
        self._waiting_for.pop(event["request"], None)
        self._engine.unlisten(event["request"], self._hear)
        [lease] = event["leases"]
        if need is None:
            self.decline(event)
            return None
        if any(id not in self._devices for id in lease["devices"]):
            self._look_again()
        devices = tuple(self._devices[id] for id in lease["devices"] if id in self._devices)
        # one that is gone again has taken the lease with it
        return Slot(lease["id"], devices, need) if len(devices) == len(lease["devices"]) else None

    def refusal(self, event: Event) -> tuple[Need | None, KalavaiError]:
        """What was refused, and the ledger's error."""
        error = PoolClosed if event["error"] == "PoolClosed" else NotEnoughDevices
        return self._requests.pop(event["request"], None), error(event["text"])

    def decline(self, event: Event) -> None:
        """Give back what was granted when it was not wanted any more; other events mean nothing then."""
        if event["kind"] == "grant":
            self._engine.release([lease["id"] for lease in event["leases"]])

    def release(self, slot: Slot) -> None:
        """End what runs there, and give the devices back."""
        self._engine.tell([(slot.worker, {"op": "kn_end_trials", "lease": slot.lease})])
        self._engine.release([slot.lease])

    def lose(self) -> None:
        """A worker is gone: the one in its place has another address."""
        self._devices = {}

    def _look_again(self) -> None:
        self._devices = {device.id: device for device in self._engine.snapshot().devices}
