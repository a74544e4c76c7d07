"""What a device or a machine says of itself at one moment. None is what cannot be known there: "n/a"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kalavai_nb.fields import made


@dataclass(frozen=True)
class Process:
    """A process that uses a device."""

    pid: int
    name: str
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Reading:
    """One device at one moment. ``utilisation`` is from 0 to 1; ``note`` says what is unusual, or why it is n/a."""

    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    processes: tuple[Process, ...] = ()
    note: str = ""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Reading:
        """What `to_fields` made of one, perhaps in another version: what is no reading is n/a."""
        try:
            processes = tuple(made(Process, {"name": "", **each}) for each in fields.get("processes", ()))
        except TypeError:
            processes = ()
        return replace(made(cls, fields), processes=processes)

    def to_fields(self) -> dict[str, Any]:
        """What is known of it, in numbers and strings: what is n/a is left out."""
        fields = known(self)
        del fields["processes"]
        if self.processes:
            fields["processes"] = [known(process) for process in self.processes]
        return fields

    @property
    def is_nothing(self) -> bool:
        """Whether the device says nothing at all of itself, such as a GPU that is lost."""
        return self == Reading(note=self.note) != Reading()

    @property
    def memory_fraction(self) -> float | None:
        """How much of its memory is in use, from 0 to 1."""
        if self.memory_used_bytes is None or not self.memory_total_bytes:
            return None
        return min(1.0, self.memory_used_bytes / self.memory_total_bytes)


@dataclass(frozen=True)
class Machine:
    """One machine at one moment: its cores, its memory, how busy they are; its ways to other machines, in words."""

    id: str
    host: str
    cores: int = 0
    memory_bytes: int = 0
    memory_used_bytes: int | None = None
    utilisation: float | None = None
    links: str = ""


def known(noun: object) -> dict[str, Any]:
    """The fields of a dataclass that have something to say."""
    return {name: value for name, value in vars(noun).items() if value not in (None, "")}
