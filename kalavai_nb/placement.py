"""Which of the devices that will do are taken. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kalavai_nb.state import Device, Need


def choose(need: Need, usable: Sequence[Device], pinned: Sequence[str], used: Mapping[str, float]) -> list[Device]:
    """The devices to grant: those of ``pinned`` ids, then others with machines kept together.

    ``used`` is which share of each device is given away. Fewer than ``count`` come back where it cannot be.
    """
    by_id = {device.id: device for device in usable}
    if any(id not in by_id for id in pinned):
        return []
    chosen = [by_id[id] for id in pinned][: need.count]
    machines: dict[str, list[Device]] = {}
    for device in sorted(usable, key=lambda device: _order(device, need, used)):
        if device.id not in pinned:
            machines.setdefault(device.machine, []).append(device)
    # the fullest machines first, so that a gang spans as few as it can; one device alone is the best there is
    by_size = sorted(machines.values(), key=len, reverse=True) if need.count > 1 else machines.values()
    for devices in by_size:
        whole_groups = len(devices) // need.per * need.per
        chosen += devices[: min(whole_groups, need.count - len(chosen))]
    return chosen


def _order(device: Device, need: Need, used: Mapping[str, float]) -> tuple[float, ...]:
    """Devices of which less is given away first, then those that the owner prefers, then the larger ones."""
    preferred = need.prefer.index(device.id) if device.id in need.prefer else len(need.prefer)
    return (used.get(device.id, 0.0), preferred, -device.memory_bytes, device.index)
