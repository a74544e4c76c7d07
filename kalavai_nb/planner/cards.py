"""Graphics cards by name, for those that are not here to be asked; and devices as people write them down."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.planner.seats import Seat
from kalavai_nb.state import Device

GB = 10**9
_MOST = 10_000
_TIMES = re.compile(r"^(?:(\d+)\s*[x×]\s+|(\d+)[x×])(.+)$|^(.+?)(?:\s+x|\s*×)\s*(\d+)$", re.IGNORECASE)
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(GB|GiB|G)?$", re.IGNORECASE)
_TAIL = re.compile(r"[\s-]+(\d+)\s*GB$", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """Its memory in GB and what that gives in GB/s, as its maker says."""

    name: str
    memory_gb: int
    bandwidth_gb: int


CARDS = tuple(
    Card(*row)
    for row in (
        ("RTX 2070", 8, 448),
        ("RTX 2080 Ti", 11, 616),
        ("RTX 3050 Ti Laptop", 4, 192),
        ("RTX 3060", 12, 360),
        ("RTX 3060 Ti", 8, 448),
        ("RTX 3070", 8, 448),
        ("RTX 3080", 10, 760),
        ("RTX 3080", 12, 912),
        ("RTX 3090", 24, 936),
        ("RTX 4060", 8, 272),
        ("RTX 4060 Ti", 8, 288),
        ("RTX 4060 Ti", 16, 288),
        ("RTX 4070", 12, 504),
        ("RTX 4070 Ti Super", 16, 672),
        ("RTX 4080", 16, 717),
        ("RTX 4090", 24, 1008),
        ("RTX 5070", 12, 672),
        ("RTX 5070 Ti", 16, 896),
        ("RTX 5080", 16, 960),
        ("RTX 5090", 32, 1792),
        ("T4", 16, 320),
        ("L4", 24, 300),
        ("A10", 24, 600),
        ("L40S", 48, 864),
        ("RTX A6000", 48, 768),
        ("RTX 6000 Ada", 48, 960),
        ("V100", 16, 900),
        ("V100", 32, 900),
        ("A100", 40, 1555),
        ("A100", 80, 2039),
        ("H100", 80, 3350),
        ("H200", 141, 4800),
    )
)
# the commonest card; what a device is taken for whose memory nobody knows the speed of
USUAL = next(card for card in CARDS if card.name == "RTX 3060")
# two channels of DDR4
CPU_BANDWIDTH = 40.0 * GB


def read_devices(devices: Any) -> tuple[Seat, ...]:
    """Devices as `Seat`.

    A card by name and how many (``"RTX 3060 x2"``, ``"2x RTX 3060"``), a size in GB (24 or ``"24GB"``), several with
    commas between, `Device` or `Seat`. A card of 12 GB counts as 12 · 10⁹ bytes free: it has some more, which its
    driver and a desktop take. Raises OptionError for what cannot be meant.
    """
    if isinstance(devices, (str, int, float, Device, Seat)):
        devices = [devices]
    if not isinstance(devices, Iterable):
        raise OptionError(f"devices={devices!r} cannot be meant: wanted a list such as ['RTX 3060 x2', 24].")
    seats = tuple(seat for device in devices for seat in _read(device))
    if not seats:
        raise OptionError("devices= is empty: name at least one, such as devices=['RTX 3060'].")
    return seats


def find_card(name: str, memory_bytes: int | None = None) -> Card | None:
    """The card of a name, as NVML or people say it; of two by that name, the one with the memory, or the smaller."""
    words = _words(name)
    fitting = [card for card in CARDS if _words(card.name) <= words]
    if not fitting:
        return None
    longest = max(len(_words(card.name)) for card in fitting)
    best = [card for card in fitting if len(_words(card.name)) == longest]
    wanted = memory_bytes or 0
    return min(best, key=lambda card: (abs(card.memory_gb * GB - wanted), card.memory_gb))


def bandwidth_of(device: Device) -> float | None:
    """Of its memory: as it was measured, else by the name of the card; None for a card that is not in the table."""
    if device.copy_bytes_per_second:
        return device.copy_bytes_per_second
    if device.kind == "cpu":
        return CPU_BANDWIDTH
    card = find_card(device.name, device.memory_bytes)
    return card.bandwidth_gb * GB if card else None


def _read(device: Any) -> list[Seat]:
    if isinstance(device, Seat):
        return [device]
    if isinstance(device, Device):
        return [Seat(str(device), device.memory_bytes, bandwidth=bandwidth_of(device), id=device.id)]
    if isinstance(device, (int, float)) and not isinstance(device, bool):
        return [_sized(float(device), GB)]
    if not isinstance(device, str):
        raise OptionError(f"the device {device!r} cannot be meant: wanted a card's name, a size in GB or a Device.")
    return [seat for part in device.split(",") if part.strip() for seat in _counted(part.strip())]


def _counted(text: str) -> list[Seat]:
    found = _TIMES.match(text)
    if not found:
        return [_named(text)]
    count = int(found[1] or found[2] or found[5])
    if not 1 <= count <= _MOST:
        raise OptionError(f"{text!r} is {count} devices: wanted 1 to {_MOST:,}.")
    return [_named((found[3] or found[4]).strip())] * count


def _named(text: str) -> Seat:
    if found := _SIZE.match(text):
        return _sized(float(found[1]), 2**30 if (found[2] or "").lower() == "gib" else GB)
    tail = _TAIL.search(text)
    memory = int(tail[1]) * GB if tail else None
    card = find_card(text[: tail.start()] if tail else text, memory)
    if card is None:
        names = list(dict.fromkeys(card.name for card in CARDS))
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"the card {text!r} is not known.{hint} Name its memory instead, such as '12GB'.")
    return Seat(card.name, memory or card.memory_gb * GB, bandwidth=card.bandwidth_gb * GB)


def _sized(size: float, unit: int) -> Seat:
    if not 0 < size < 10**6:
        raise OptionError(f"a device of {size:g} GB cannot be meant: wanted gigabytes, such as 24.")
    return Seat(f"{size:g} {'GB' if unit == GB else 'GiB'}", round(size * unit))


def _words(name: str) -> set[str]:
    """What tells cards apart: "NVIDIA GeForce RTX 3060 Ti" and "rtx3060ti" are the same."""
    split = re.sub(r"(?<=\d)(?=ti\b|super\b|laptop\b)|(?<=rtx)(?=\d)", " ", name.lower().replace("-", " "))
    return set(split.split())
