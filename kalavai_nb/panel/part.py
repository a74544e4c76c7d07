"""What of a state is about one sweep, for the display of that sweep alone."""

from __future__ import annotations

from typing import Any

State = dict[str, Any]


def part_of_sweep(state: State, id: str) -> State:
    """The same form, with this sweep and the devices that work for it; all else is left out, and counts as not there.

    A sweep that the snapshot does not have (any more) leaves a pool with nothing in it.
    """
    return {
        **state,
        "pools": {pool: {**entry, "snapshot": _part(entry["snapshot"], id)} for pool, entry in state["pools"].items()},
    }


def _part(snapshot: dict[str, Any], id: str) -> dict[str, Any]:
    sweeps = {key: sweep for key, sweep in snapshot["sweeps"].items() if key == id}
    works_for = {(sweep["owner"], f"sweep {sweep['name']}") for sweep in sweeps.values()}
    leases = {
        key: lease for key, lease in snapshot["leases"].items() if (lease["owner"], lease.get("what")) in works_for
    }
    held = {device for lease in leases.values() for device in lease["devices"]}
    devices = {key: device for key, device in snapshot["devices"].items() if key in held}
    at_work = {device["machine"] for device in devices.values()}
    return {
        **snapshot,
        "sweeps": sweeps,
        "leases": leases,
        "devices": devices,
        "machines": {key: machine for key, machine in snapshot["machines"].items() if key in at_work},
        "alerts": {key: alert for key, alert in snapshot["alerts"].items() if alert.get("device") in held},
        "cells": {},
        "models": {},
        "queue": {},
        "events": [],
    }
