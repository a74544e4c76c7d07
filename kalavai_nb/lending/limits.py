"""What its owner lends of a machine: which devices, how much of them, and when. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.lending.hours import ALWAYS, Hours
from kalavai_nb.security import parse_seconds
from kalavai_nb.state import Device

GRACE_SECONDS = 60.0
MOST_GRACE_SECONDS = 24 * 3600.0
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# a device with less can do nothing
LEAST_BYTES = 256 << 20


@dataclass(frozen=True)
class Limits:
    """What is lent. None is without a limit.

    Attributes
    ----------
    gpus : tuple of int or None
        Indices of the devices that are lent.
    memory : float or int or None
        How much of each device's memory: a fraction (a float up to 1.0), or bytes (an int).
    hours : Hours
        When.
    when_idle : bool
        Only while the owner does not use the machine.
    max_power_watts : float or None
        The most power that each device may take, in the mean.
    grace_seconds : float
        How long work that runs has to finish when a device is taken back.
    """

    gpus: tuple[int, ...] | None = None
    memory: float | int | None = None
    hours: Hours = ALWAYS
    when_idle: bool = False
    max_power_watts: float | None = None
    grace_seconds: float = GRACE_SECONDS

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Limits:
        """From options of the command line, as texts: gpus, memory, hours, when_idle, max_power, grace.

        What is None is not given; ``"none"`` and ``"all"`` take a limit back. Raises OptionError with a sentence for
        what cannot be meant.
        """
        return cls().updated(options)

    def updated(self, options: Mapping[str, Any]) -> Limits:
        """The same with these options. Raises OptionError."""
        read: dict[str, Any] = {}
        for name, value in options.items():
            field = _ALIASES.get(name, name)
            if field not in _READERS:
                near = difflib.get_close_matches(name, OPTIONS, n=1)
                said = f" Did you mean {near[0]!r}?" if near else ""
                raise OptionError(f"there is no limit {name!r}.{said} The limits are: {', '.join(OPTIONS)}.")
            if value is None:
                continue
            if str(value).strip().lower() in ("none", "all", "always"):
                read[field] = getattr(_NO_LIMITS, field)
                continue
            try:
                read[field] = _READERS[field](value)
            except OptionError:
                raise
            except (ValueError, TypeError) as error:
                raise OptionError(f"--{name.replace('_', '-')} {value} cannot be meant: {error}.") from None
        return replace(self, **read)

    @classmethod
    def from_fields(cls, said: Mapping[str, Any]) -> Limits:
        """What `to_fields` made. Raises OptionError, since limits that cannot be read must not be none."""
        return cls.parse(said)

    def to_fields(self) -> dict[str, Any]:
        """For a JSON file that people can read, and write: the options of the command line."""
        memory = None if self.memory is None else f"{self.memory}B"
        if isinstance(self.memory, float):
            memory = f"{100 * self.memory:.10g}%"
        return {
            "gpus": None if self.gpus is None else ",".join(map(str, self.gpus)),
            "memory": memory,
            "hours": [str(span) for span in self.hours.spans] or None,
            "when_idle": self.when_idle,
            "max_power": self.max_power_watts,
            "grace": self.grace_seconds,
        }

    def describe(self) -> str:
        """For people, such as "80 % of memory; 22:00-08:00; when idle; at most 250 W"; empty where all is lent."""
        memory = ""
        if isinstance(self.memory, float) and self.memory < 1:
            memory = f"{100 * self.memory:.3g} % of memory"
        elif isinstance(self.memory, int):
            memory = f"{self.memory / 2**30:.3g} GiB of memory"
        power = f"at most {self.max_power_watts:g} W" if self.max_power_watts is not None else ""
        hours = str(self.hours) if self.hours.spans else ""
        return "; ".join(filter(None, (memory, hours, "when idle" if self.when_idle else "", power)))

    def lends(self, device: Device) -> bool:
        """Whether this device is one of those that are lent."""
        return self.gpus is None or device.index in self.gpus

    def open_now(self, moment: datetime) -> bool:
        """Whether this moment is one of the hours; a datetime without a zone is of this machine's time."""
        return self.hours.open_at(moment)

    def next_change(self, moment: datetime) -> datetime | None:
        """When that changes next; None where it never does."""
        return self.hours.next_change(moment)

    def memory_of(self, whole_bytes: int) -> int:
        """How many bytes are lent of a device that has so many."""
        if isinstance(self.memory, float):
            return int(whole_bytes * self.memory)
        return whole_bytes if self.memory is None else min(whole_bytes, self.memory)

    def order(self, device: Device) -> dict[str, Any]:
        """What the guard of this device, as this machine has it (not as it is `lent`), needs to know of them."""
        limited = self.memory_of(device.memory_bytes) if self.memory is not None else None
        return {
            "memory_bytes": limited,
            "whole_bytes": device.memory_bytes,
            "max_power_watts": self.max_power_watts,
            "text": self.describe(),
        }


def lent(device: Device, limits: Limits) -> Device:
    """The device as the pool is to see it: with the memory that is lent, and what is said of its limits."""
    return replace(device, memory_bytes=limits.memory_of(device.memory_bytes), limits=limits.describe())


def check(limits: Limits, devices: Iterable[Device]) -> list[Device]:
    """The devices of this machine that are lent. Raises OptionError where limits name what is not there."""
    there = list(devices)
    if limits.gpus is not None and all(device.kind == "cpu" for device in there):
        wanted = ",".join(map(str, limits.gpus))
        raise OptionError(
            f"--gpus {wanted}: this machine has no GPU that can be lent; --devices N lends N CPU stand-ins instead."
        )
    indices = {device.index for device in there}
    if missing := sorted(set(limits.gpus or ()) - indices):
        listed = ", ".join(f"{device.index} ({device.name})" for device in there) or "none"
        raise OptionError(f"--gpus {missing[0]} is not there: this machine has {listed}.")
    return [device for device in there if limits.lends(device)]


def _gpus(value: Any) -> tuple[int, ...]:
    parts = [each.strip() for each in value.split(",")] if isinstance(value, str) else [str(each) for each in value]
    if not parts or not all(re.fullmatch(r"\d{1,4}", each) for each in parts):
        raise ValueError("wanted indices of GPUs with commas between them, such as 0,1, or all")
    return tuple(sorted({int(each) for each in parts}))


def _memory(value: Any) -> float | int:
    text = str(value).strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        fraction = float(match[1]) / 100
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?B?|B)", text, re.IGNORECASE):
        amount = int(float(match[1]) * _UNITS[(match[2] or "").upper()])
        if amount < LEAST_BYTES:
            raise ValueError("too little for anything to run: wanted 256MB at least")
        return amount
    else:
        raise ValueError("wanted a part of the memory such as 80%, or an amount such as 8GB")
    if not 0 < fraction <= 1:
        raise ValueError("wanted more than 0% and at most 100%")
    return fraction


def _watts(value: Any) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*W?", str(value).strip(), re.IGNORECASE)
    if isinstance(value, bool) or not match or not 1 <= float(match[1]) <= 10_000:
        raise ValueError("wanted watts for each device, such as 250")
    return float(match[1])


def _grace(value: Any) -> float:
    seconds = parse_seconds(value)
    if seconds > MOST_GRACE_SECONDS:
        raise ValueError("wanted a day at most, such as 60s or 10m")
    return seconds


def _flag(value: Any) -> bool:
    if value in (True, "true", "yes", "on", "1", ""):
        return True
    if value in (False, "false", "no", "off", "0"):
        return False
    raise ValueError("it is a flag: wanted true or false")


_READERS: dict[str, Any] = {
    "gpus": _gpus,
    "memory": _memory,
    "hours": Hours.parse,
    "when_idle": _flag,
    "max_power_watts": _watts,
    "grace_seconds": _grace,
}
_ALIASES = {"max_power": "max_power_watts", "grace": "grace_seconds"}
OPTIONS = ("gpus", "memory", "hours", "when_idle", "max_power", "grace")
_NO_LIMITS = Limits()
assert set(_READERS) == {field.name for field in fields(Limits)}
