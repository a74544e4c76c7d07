"""What an owner has published, read by somebody who does not trust it: what is known, in known shapes and sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kalavai_nb.registry.entry import VERSION
from kalavai_nb.registry.forms import (
    Form,
    Unfit,
    fields,
    flag,
    list_of,
    map_of,
    name,
    number,
    one_of,
    pair,
    percents,
    text,
    whole,
)

# of devices, leases and whatever else there is one of for each device
MOST_DEVICES = 4096
MOST_ACTIVITIES = 512
MOST_PID = 1 << 22


@dataclass(frozen=True)
class Published:
    """The content of one owner's file, fit for showing. ``written`` is when, by the clock of the files."""

    pool: str
    owner: str
    label: str
    sequence: int
    pid: int
    host: str
    machine: str
    link: str
    reason: str
    can_invite: bool
    snapshot: dict[str, Any]
    written: float = 0.0

    @property
    def time(self) -> float:
        """When the head made the snapshot, by its own clock."""
        return float(self.snapshot["time"])


def parse(content: bytes, written: float = 0.0) -> Published:
    """Raises ValueError, with a sentence, for what is not to be shown."""
    try:
        whole_file = json.loads(content)
    except RecursionError:
        raise Unfit("is nested too deeply") from None
    except ValueError:
        raise Unfit("is no JSON") from None
    _check_version(whole_file)
    fitting = _FILE(whole_file)
    _check_version(whole_file["snapshot"])
    return Published(pool=fitting["snapshot"]["id"], written=written, **fitting)


def _check_version(value: Any) -> None:
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version > VERSION:
        raise Unfit(
            f"was written by a newer kalavai_nb, in version {version}, and the Jupyter server has one that reads "
            f"version {VERSION}: upgrade kalavai_nb where the server is installed"
        )
    if type(version) is not int or version != VERSION:
        raise Unfit(f"is not of version {VERSION}")


_BRIEF, _LONG = text(200), text(2000)
_DEVICE_NAMES = list_of(name, 256)

_READING = fields(
    {},
    {
        "memory_used_bytes": whole,
        "memory_total_bytes": whole,
        "utilisation": number,
        "temperature_celsius": number,
        "power_watts": number,
        "power_limit_watts": number,
        "processes": list_of(fields({"pid": whole, "name": _BRIEF}, {"memory_bytes": whole}), 64),
        "note": text(),
    },
)
_DEVICE = fields(
    {"index": whole, "kind": _BRIEF, "name": _BRIEF, "host": _BRIEF, "machine": name, "memory_bytes": whole},
    {
        "flops": number,
        "limits": text(),
        "leaving": text(),
        "reading": _READING,
        "silent_seconds": whole,
        "history": fields({"utilisation": percents, "memory": percents}),
    },
)
_MACHINE = fields(
    {"host": _BRIEF},
    {"cores": whole, "memory_bytes": whole, "memory_used_bytes": whole, "utilisation": number, "links": text()},
)
_LEASE = fields(
    {
        "owner": name,
        "label": _BRIEF,
        "kind": _BRIEF,
        "devices": _DEVICE_NAMES,
        "share": number,
        "running": flag,
        "since": number,
    },
    {"what": _BRIEF},
)
_WAITING = fields({"owner": name, "label": _BRIEF, "count": whole, "since": number, "reason": _LONG})
_CELL = fields(
    {"owner": name, "number": whole, "text": text(), "ranks": whole, "devices": _DEVICE_NAMES, "since": number}
)
_SWEEP = fields(
    {
        "owner": name,
        "name": _BRIEF,
        "fn": _BRIEF,
        "state": _BRIEF,
        "counts": map_of(whole, 16),
        "total": whole,
        "since": number,
    },
    {"best": text(), "eta_seconds": number, "trouble": _LONG},
)
_MODEL = fields(
    {
        "owner": name,
        "name": _BRIEF,
        "state": text(),
        "stages": list_of(fields({"device": name, "layers": pair}), MOST_ACTIVITIES),
        "spares": _DEVICE_NAMES,
    },
    {"tokens_per_second": number, "requests": whole},
)
_EVENT = fields({"time": number, "kind": _BRIEF, "text": _LONG})
_ALERT = fields({"kind": _BRIEF, "text": _LONG}, {"device": name})

_SNAPSHOT: Form = fields(
    {
        "version": whole,
        "id": name,
        "pool": _BRIEF,
        "time": number,
        "machines": map_of(_MACHINE, MOST_DEVICES),
        "devices": map_of(_DEVICE, MOST_DEVICES),
        "leases": map_of(_LEASE, MOST_DEVICES),
        "queue": map_of(_WAITING, MOST_ACTIVITIES),
        "owners": map_of(fields({"label": _BRIEF}), MOST_DEVICES),
        "cells": map_of(_CELL, MOST_ACTIVITIES),
        "sweeps": map_of(_SWEEP, MOST_ACTIVITIES),
        "models": map_of(_MODEL, MOST_ACTIVITIES),
        "events": list_of(_EVENT, 20),
        "alerts": map_of(_ALERT, MOST_ACTIVITIES),
    },
)


def _pid(value: Any) -> int:
    if not 0 < whole(value) <= MOST_PID:
        raise Unfit("should be the id of a process")
    return int(value)


_FILE: Form = fields(
    {
        "sequence": whole,
        "pid": _pid,
        "host": _BRIEF,
        "machine": _BRIEF,
        "owner": name,
        "label": _BRIEF,
        "link": one_of("live", "lost"),
        "reason": _LONG,
        "can_invite": flag,
        "snapshot": _SNAPSHOT,
    },
)
