"""The whole pool at one moment, and its one form as JSON: for the panel, the sidebar and the files between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kalavai_nb.fields import made, number, text, texts, wholes
from kalavai_nb.reading import Machine, Reading, known
from kalavai_nb.state import Device, Lease, Link, Waiting

VERSION = 1
# its key, and what only the engine needs: an address, and what CUDA_VISIBLE_DEVICES needs
NOT_FOR_SHOW = ("id", "worker", "selector")


@dataclass(frozen=True)
class Cell:
    """A cell that runs: its number in its owner's notebook, its first line, how many ranks it has."""

    id: str
    owner: str
    number: int
    text: str
    ranks: int
    devices: tuple[str, ...]
    since: float


@dataclass(frozen=True)
class SweepState:
    """How far a sweep is: ``state`` is "running", "stopped", "ended" or "cut off"; ``counts`` are trials by state."""

    id: str
    owner: str
    name: str
    fn: str
    state: str
    counts: dict[str, int]
    total: int
    since: float
    best: str = ""
    eta_seconds: float | None = None
    trouble: str = ""


@dataclass(frozen=True)
class ModelState:
    """A loaded model: which device has which layers ``(start, end)``, and what it generates now."""

    id: str
    owner: str
    name: str
    state: str
    stages: tuple[tuple[str, tuple[int, int]], ...] = ()
    spares: tuple[str, ...] = ()
    tokens_per_second: float | None = None
    requests: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened in the pool, such as the loss of a worker."""

    time: float
    kind: str
    text: str


@dataclass(frozen=True)
class Alert:
    """Something that somebody should look at now. ``kind`` is "idle", "memory", "silent" or "lost"."""

    key: str
    kind: str
    text: str
    device: str = ""


@dataclass(frozen=True)
class History:
    """The last ten minutes of a device, oldest first: whole percents in bins of ten seconds, -1 where there is none."""

    utilisation: tuple[int, ...]
    memory: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """The whole pool at one moment: its devices, who holds them, who waits for what, and what runs.

    ``readings``, ``silent_seconds`` (where a device that should have said something has not), ``leaving`` (the sentence
    where an owner takes a device back) and ``history`` are by the id of a device. ``id`` is of the pool and the same
    for all who are in it; ``pool`` is its name. Times are Unix times. ``links`` are the ways between machines; who only
    looks gets them as words of each machine.
    """

    pool: str
    time: float
    devices: tuple[Device, ...] = ()
    leases: tuple[Lease, ...] = ()
    queue: tuple[Waiting, ...] = ()
    owners: dict[str, str] = field(default_factory=dict)
    id: str = ""
    machines: tuple[Machine, ...] = ()
    readings: dict[str, Reading] = field(default_factory=dict)
    silent_seconds: dict[str, int] = field(default_factory=dict)
    history: dict[str, History] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    sweeps: tuple[SweepState, ...] = ()
    models: tuple[ModelState, ...] = ()
    events: tuple[Event, ...] = ()
    alerts: tuple[Alert, ...] = ()
    links: tuple[Link, ...] = ()
    leaving: dict[str, str] = field(default_factory=dict)

    def leases_on(self, device_id: str) -> list[Lease]:
        """The leases that hold this device."""
        return [lease for lease in self.leases if device_id in lease.devices]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, version 1: collections are objects by id, and what is not known (n/a) is left out.

        So two snapshots differ by a merge patch (RFC 7386) that has just what changed.
        """
        return {
            "version": VERSION,
            "id": self.id,
            "pool": self.pool,
            "time": self.time,
            "machines": _by(self.machines, "id"),
            "devices": {device.id: self._device(device) for device in self.devices},
            "leases": _by(self.leases, "id"),
            "queue": _by(self.queue, "id"),
            "owners": {id: {"label": label} for id, label in self.owners.items()},
            "cells": _by(self.cells, "id"),
            "sweeps": _by(self.sweeps, "id"),
            "models": {model.id: _model(model) for model in self.models},
            "events": [known(event) for event in self.events],
            "alerts": _by(self.alerts, "key"),
        }

    def to_fields(self) -> dict[str, Any]:
        """All of it in lists, dicts, strings and numbers, for `from_fields`."""
        return {
            **vars(self),
            **{name: [dict(vars(each)) for each in getattr(self, name)] for name in _NOUNS},
            "readings": {id: reading.to_fields() for id, reading in self.readings.items()},
            "history": {id: (each.utilisation, each.memory) for id, each in self.history.items()},
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Snapshot:
        """What `to_fields` made of one, perhaps in another version: what is not there is empty."""
        nouns: dict[str, Any] = {
            name: tuple(made(noun, each) for each in fields.get(name, ())) for name, noun in _NOUNS.items()
        }
        readings = {id: Reading.from_fields(reading) for id, reading in fields.get("readings", {}).items()}
        history = {id: History(tuple(use), tuple(full)) for id, (use, full) in fields.get("history", {}).items()}
        plain: dict[str, Any] = {
            "pool": text(fields["pool"]),
            "time": number(fields["time"]),
            "id": text(fields.get("id", "")),
            "owners": texts(fields.get("owners", {})),
            "silent_seconds": wholes(fields.get("silent_seconds", {})),
            "leaving": texts(fields.get("leaving", {})),
        }
        return cls(**plain, **nouns, readings=readings, history=history)

    def _device(self, device: Device) -> dict[str, Any]:
        shown = {name: value for name, value in known(device).items() if name not in NOT_FOR_SHOW}
        if reading := self.readings.get(device.id):
            shown["reading"] = reading.to_fields()
        if silent := self.silent_seconds.get(device.id):
            shown["silent_seconds"] = silent
        if leaving := self.leaving.get(device.id):
            shown["leaving"] = leaving
        if history := self.history.get(device.id):
            shown["history"] = {"utilisation": list(history.utilisation), "memory": list(history.memory)}
        return shown


_NOUNS: dict[str, type] = {
    "devices": Device,
    "leases": Lease,
    "queue": Waiting,
    "machines": Machine,
    "cells": Cell,
    "sweeps": SweepState,
    "models": ModelState,
    "events": Event,
    "alerts": Alert,
    "links": Link,
}


def _by(nouns: Iterable[object], key: str) -> dict[str, Any]:
    return {getattr(noun, key): _without(key, known(noun)) for noun in nouns}


def _model(model: ModelState) -> dict[str, Any]:
    stages = [{"device": device, "layers": list(layers)} for device, layers in model.stages]
    return {**_without("id", known(model)), "stages": stages}


def _without(key: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if name != key}
