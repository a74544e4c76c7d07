"""What somebody should look at now: devices that are idle but held, nearly out of memory, silent or lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kalavai_nb.snapshot import Alert, Snapshot
from kalavai_nb.state import Device

IDLE_SECONDS = 300.0
FULL = 0.95


def alerts(snapshot: Snapshot, idle_seconds: Mapping[str, float], lost: Iterable[Device]) -> Iterator[Alert]:
    """The alerts of a pool. ``idle_seconds`` is how long each device was not at work; ``lost`` are gone from it."""
    for device in lost:
        yield Alert(f"lost/{device.id}", "lost", f"{device} was lost: its worker is gone", device.id)
    yield from _silent(snapshot)
    for device in snapshot.devices:
        reading = snapshot.readings.get(device.id)
        if reading and reading.is_nothing:
            yield Alert(f"lost/{device.id}", "lost", f"{device} does not answer: {reading.note}", device.id)
        yield from _full(snapshot, device)
        yield from _idle(snapshot, device, idle_seconds.get(device.id, 0.0))


def _silent(snapshot: Snapshot) -> Iterator[Alert]:
    """One for a whole machine that says nothing, else one for each device."""
    by_machine: dict[str, list[Device]] = {}
    for device in snapshot.devices:
        by_machine.setdefault(device.machine, []).append(device)
    for machine, devices in by_machine.items():
        silent = {
            device: snapshot.silent_seconds[device.id] for device in devices if device.id in snapshot.silent_seconds
        }
        if len(silent) == len(devices) > 1:
            text = f"no news from {devices[0].host} for {min(silent.values())} s"
            yield Alert(f"silent/{machine}", "silent", text)
            continue
        for device, seconds in silent.items():
            yield Alert(f"silent/{device.id}", "silent", f"no news from {device} for {seconds} s", device.id)


def _full(snapshot: Snapshot, device: Device) -> Iterator[Alert]:
    reading = snapshot.readings.get(device.id)
    fraction = reading.memory_fraction if reading else None
    if fraction is not None and fraction >= FULL:
        text = f"{device} is nearly out of memory: {fraction:.0%} of it is in use"
        yield Alert(f"memory/{device.id}", "memory", text, device.id)


def _idle(snapshot: Snapshot, device: Device, idle_seconds: float) -> Iterator[Alert]:
    leases = snapshot.leases_on(device.id)
    if leases and idle_seconds >= IDLE_SECONDS and device.id not in snapshot.silent_seconds:
        since = min(lease.since for lease in leases)
        held_seconds = min(idle_seconds, snapshot.time - since)
        if held_seconds >= IDLE_SECONDS:
            holders = ", ".join(dict.fromkeys(lease.holder for lease in leases))
            text = f"{device} is held by {holders}, and idle for {held_seconds / 60:.0f} min"
            yield Alert(f"idle/{device.id}", "idle", text, device.id)
