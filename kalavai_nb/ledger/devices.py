"""The devices that the pool has or expects back, and sets of them.

A set of devices is a whole number: each device has a bit, the better the device the lower. What fits, is free and is
not kept for somebody else is found by some operations on numbers then, however many devices there are, and the best of
it is the lowest bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kalavai_nb.state import Device, Need

# devices of which one is not a quarter faster than the other are of equal speed
SPEED_STEP = 1.25
# of each kind of request, kept until devices come or go
MOST_KINDS = 4096


@dataclass(frozen=True)
class Away:
    """A device that is gone since then; ``why`` it left, where it was not lost."""

    device: Device
    since: float
    why: str = ""


class Devices:
    """Those that are ``here`` and those that are ``away``, by id. Bits hold for one ``version``."""

    def __init__(self) -> None:
        self.here: dict[str, Device] = {}
        self.away: dict[str, Away] = {}
        self.version = 0
        self.machines: dict[str, int] = {}
        self.tiers: list[int] = []
        self._in_order: list[Device] = []
        self._bits: dict[str, int] = {}
        self._fitting: dict[tuple[str, str, int], int] = {}
        self._is_stale = False

    def add(self, device: Device) -> None:
        """This device is here, perhaps again."""
        gone = self.away.pop(device.id, None)
        known = gone.device if gone else self.here.get(device.id)
        self.here[device.id] = device
        if known is not None and known == replace(device, worker=known.worker) and not self._is_stale:
            self._in_order[self._bits[device.id].bit_length() - 1] = device
        else:
            self._is_stale = True

    def lose(self, device_id: str, now: float, why: str) -> None:
        """This device is away."""
        self.away[device_id] = Away(self.here.pop(device_id), now, why)

    def give_up(self, now: float, after_seconds: float) -> list[Device]:
        """Expect those no longer that have been away for so long. Returns them."""
        if not self.away:
            return []
        lost = [away.device for away in self.away.values() if now - away.since >= after_seconds]
        for device in lost:
            del self.away[device.id]
            self._is_stale = True
        return lost

    @property
    def expected(self) -> list[Device]:
        """Those that are here, then those that are away."""
        return [*self.here.values(), *(away.device for away in self.away.values())]

    def refresh(self) -> int:
        """Give each its bit, where devices have come or gone. Returns the version."""
        if self._is_stale:
            self._is_stale = False
            self.version += 1
            expected = self.expected
            measured = any(device.flops for device in expected)
            self._in_order = sorted(expected, key=lambda device: _quality(device, measured))
            self._bits = {device.id: 1 << number for number, device in enumerate(self._in_order)}
            self._fitting.clear()
            self.machines = {}
            tiers: dict[int, int] = {}
            for device in self._in_order:
                bit = self._bits[device.id]
                self.machines[device.machine] = self.machines.get(device.machine, 0) | bit
                tiers[_speed(device)] = tiers.get(_speed(device), 0) | bit
            self.tiers = [tiers[speed] for speed in sorted(tiers, reverse=True)]
        return self.version

    # sets

    def bit(self, device_id: str) -> int:
        """The set of this device alone; empty where there is none."""
        return self._bits.get(device_id, 0)

    def all_of(self, device_ids: Iterable[str]) -> int:
        """The set of these devices."""
        found = 0
        for id in device_ids:
            found |= self._bits.get(id, 0)
        return found

    def where(self, bit: int) -> str:
        """The machine of the device with this bit."""
        return self._in_order[bit.bit_length() - 1].machine

    def each(self, devices: int) -> Iterator[Device]:
        """The devices of a set, best first."""
        while devices:
            bit = devices & -devices
            devices ^= bit
            yield self._in_order[bit.bit_length() - 1]

    def fitting(self, need: Need) -> int:
        """The set of those of the kind that was asked for."""
        key = (need.type, need.host, need.vram_bytes)
        found = self._fitting.get(key)
        if found is None:
            if len(self._fitting) >= MOST_KINDS:
                self._fitting.clear()
            found = self._fitting[key] = self._find(replace(need, avoid=()))
        return found & ~self.all_of(need.avoid) if need.avoid else found

    def _find(self, need: Need) -> int:
        found, known = 0, {}
        for number, device in enumerate(self._in_order):
            alike = (device.name, device.kind, device.host, device.memory_bytes)
            if alike not in known:
                known[alike] = need.fits(device)
            if known[alike]:
                found |= 1 << number
        return found


def _speed(device: Device) -> int:
    flops = device.flops or 0.0
    return round(math.log(flops, SPEED_STEP)) if 0 < flops < math.inf else 0


def _quality(device: Device, measured: bool) -> tuple[float, ...]:
    """Fast ones first, where that was measured of any; a GPU is faster than a stand-in, measured or not."""
    return (measured and device.kind == "cpu", -_speed(device), -device.memory_bytes, device.index)
