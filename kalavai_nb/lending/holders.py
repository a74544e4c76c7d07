"""Who runs what on which device, and since when, in sentences. Pure.

A snapshot is what `Snapshot.to_dict` made of it: a gate passes it on as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

Shown = Mapping[str, Any]


class Held(TypedDict):
    """A lease of a device: who has it, what for, since how many seconds, and whether something runs there now."""

    device: str
    name: str
    owner: str
    kind: str
    what: str
    share: float
    running: bool
    seconds: float


def held_devices(snapshot: Shown, only: Collection[str] | None = None) -> list[Held]:
    """Every lease of these devices (None: of all), in the order of the devices."""
    leases = list(snapshot.get("leases", {}).values())
    return [
        _held(device, lease, float(snapshot["time"]))
        for id, device in snapshot.get("devices", {}).items()
        if only is None or id in only
        for lease in leases
        if id in lease.get("devices", ())
    ]


def sentence(held: Held) -> str:
    """``"gpu-box cuda:0 (RTX 3060): train.ipynb (4711) runs a trial for digits (for 12 s)"``."""
    return f"{held['device']} ({held['name']}): {doing(held)}"


def doing(held: Held) -> str:
    """The same without the device."""
    what = f" for {held['what']}" if held["what"] else ""
    share = f" on {held['share']:g} of it" if held["share"] < 1 else ""
    does = f"runs a {held['kind']}" if held["running"] else f"keeps an idle {held['kind']}"
    return f"{held['owner']} {does}{what}{share} (for {span(held['seconds'])})"


def running(snapshot: Shown, only: Collection[str] | None = None) -> list[str]:
    """A sentence for each device on which something runs now."""
    return [sentence(held) for held in held_devices(snapshot, only) if held["running"]]


def device_title(device: Shown) -> str:
    """What `Device` calls itself: ``"gpu-box cuda:0"``."""
    return f"{device.get('host')} {device.get('kind')}:{device.get('index')}"


def span(seconds: float) -> str:
    """``"12 s"``, ``"3 min"``, ``"2 h 5 min"``, ``"3 d 4 h"``."""
    whole = max(0, round(seconds))
    for size, name, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name} {rest} {below}" if rest else f"{whole // size} {name}"
    return f"{whole // 60} min" if whole >= 120 else f"{whole} s"


def _held(device: Shown, lease: Shown, now: float) -> Held:
    return Held(
        device=device_title(device),
        name=str(device.get("name", "")),
        owner=str(lease.get("label") or "somebody"),
        kind=str(lease.get("kind", "")),
        what=str(lease.get("what", "")),
        share=float(lease.get("share", 1.0)),
        running=bool(lease.get("running")),
        seconds=round(max(0.0, now - float(lease.get("since", now))), 1),
    )
