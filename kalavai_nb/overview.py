"""What the head knows of a pool beside its leases: readings, what owners run, and what happened. Pure: no clock.

A device that is expected to say something each second and does not is silent; one whose worker is gone is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kalavai_nb.alerts import alerts
from kalavai_nb.fields import made
from kalavai_nb.history import Record
from kalavai_nb.reading import Machine, Reading
from kalavai_nb.roads import link_words
from kalavai_nb.snapshot import Cell, Event, ModelState, Snapshot, SweepState
from kalavai_nb.state import Device, Lease, Link, Waiting

EVENTS = 20
SILENT_SECONDS = 3.0
# how long a device that was lost is told of, if it does not come back
LOST_SECONDS = 60.0
# of each kind, from one owner: what is shown stays small whatever an owner says
MOST_ACTIVITIES = 100

_KINDS: dict[str, Any] = {"cells": Cell, "sweeps": SweepState, "models": ModelState}


class Overview:
    """Hears of everything, and makes the snapshot of it. Times are those of the head's clock."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._machines: dict[str, Machine] = {}
        self._lost: dict[str, tuple[Device, float]] = {}
        self._activities: dict[str, dict[str, tuple[Any, ...]]] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._links: dict[tuple[str, str], Link] = {}

    def join(self, device: Device, now: float) -> None:
        """This device is there, perhaps again."""
        self._lost.pop(device.id, None)
        self._records.setdefault(device.id, Record(now)).heard_at = now
        self.note("joined", f"{device} joined", now)

    def lose(self, device: Device, now: float) -> None:
        """The worker of this device is gone. Its history stays for a while: it may come back."""
        self._lost[device.id] = (device, now)
        self.note("lost", f"{device} was lost", now)

    def leave(self, device: Device, now: float) -> None:
        """The worker of this device has ended, since its owner took it back."""
        self.note("left", f"{device} has left", now)

    def hear(self, device: str, reading: Reading, machine: Machine, now: float) -> None:
        """A device's reading, and its machine's."""
        if device in self._records:
            self._records[device].add(reading, now)
            self._machines[device] = machine

    def measure(self, link: Link) -> None:
        """The way from one machine to another was measured."""
        self._links[link.source, link.target] = link

    def tell(self, owner: str, activities: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """What an owner runs now. What cannot be meant is not shown."""
        self._activities[owner] = {
            kind: tuple(_nouns(noun, owner, activities.get(kind, ()))) for kind, noun in _KINDS.items()
        }

    def forget(self, owner: str) -> None:
        """This owner is gone, and with it all that it ran."""
        self._activities.pop(owner, None)

    def note(self, kind: str, text: str, now: float) -> None:
        """Something happened that people will want to know of."""
        self._events.append(Event(now, kind, text))

    def snapshot(
        self,
        id: str,
        pool: str,
        devices: tuple[Device, ...],
        leases: tuple[Lease, ...],
        queue: tuple[Waiting, ...],
        owners: Mapping[str, str],
        now: float,
    ) -> Snapshot:
        """All of it, with what the ledger knows."""
        self._tidy(devices, now)
        records = {device.id: self._records[device.id] for device in devices if device.id in self._records}
        machines = {device.machine: self._machines[device.id] for device in devices if device.id in self._machines}
        ways = self._ways(devices)
        silent = {id: int(now - record.heard_at) for id, record in records.items()}
        snapshot = Snapshot(
            pool,
            now,
            devices,
            leases,
            queue,
            dict(owners),
            id,
            machines=tuple(replace(machine, id=id, links=ways[id]) for id, machine in machines.items()),
            readings={id: record.reading for id, record in records.items() if record.reading},
            silent_seconds={id: seconds for id, seconds in silent.items() if seconds >= SILENT_SECONDS},
            history={id: record.history(now) for id, record in records.items()},
            cells=self._all("cells"),
            sweeps=self._all("sweeps"),
            models=self._all("models"),
            events=tuple(self._events),
            links=tuple(self._links.values()),
        )
        idle = {id: now - record.busy_at for id, record in records.items()}
        return replace(snapshot, alerts=tuple(alerts(snapshot, idle, [device for device, _ in self._lost.values()])))

    def _ways(self, devices: Iterable[Device]) -> dict[str, str]:
        """From each machine to the others, in words."""
        hosts = {device.machine: device.host for device in devices}
        found: dict[str, list[Link]] = {machine: [] for machine in hosts}
        for link in self._links.values():
            if link.source in found:
                found[link.source].append(link)
        return {id: link_words(links, hosts) for id, links in found.items()}

    def _all(self, kind: str) -> tuple[Any, ...]:
        return tuple(noun for activities in self._activities.values() for noun in activities[kind])

    def _tidy(self, devices: Iterable[Device], now: float) -> None:
        there, machines = {device.id for device in devices}, {device.machine for device in devices}
        self._links = {pair: link for pair, link in self._links.items() if machines.issuperset(pair)}
        self._lost = {id: (device, at) for id, (device, at) in self._lost.items() if now - at < LOST_SECONDS}
        kept = there | self._lost.keys()
        self._records = {id: record for id, record in self._records.items() if id in kept}
        self._machines = {id: machine for id, machine in self._machines.items() if id in kept}


def _nouns(noun: Any, owner: str, told: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
    for fields in list(told)[:MOST_ACTIVITIES]:
        try:
            yield made(noun, {**fields, "owner": owner})
        except TypeError:
            continue
