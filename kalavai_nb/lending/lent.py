"""Which devices of this machine are lent, which are being taken back, and so what is wanted of its process. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from kalavai_nb.state import Device

# what the machine's process says of a device that has a worker
_UP = ("starting", "lent", "leaving")
# what it says of one whose worker does not start begins so, and goes on with the reason
FAILING = "failing:"


class Leaving(TypedDict):
    """Why a device is taken back, and how long what runs there may go on."""

    why: str
    grace_seconds: float


class Lent:
    """The devices that this machine could lend, and how far each of them is: "starting", "lent", "leaving", "left"
    or "failing: …".

    One that is to be taken back stays ordered until its worker has left; then it can be lent again.
    """

    def __init__(self, devices: Iterable[Device], grace_seconds: float) -> None:
        self.devices = tuple(devices)
        self.grace_seconds = grace_seconds
        self.states: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._ordered: set[str] = set()
        self._is_ending = ""

    @property
    def kept(self) -> dict[str, str]:
        """Why a device is not lent now, by its id; those that are lent are not in it."""
        return dict(self._kept)

    @property
    def is_drained(self) -> bool:
        """Whether no device has a worker here any more."""
        return not self._ordered

    def hear(self, states: Mapping[str, Any]) -> None:
        """What the machine's process reports of its devices: all that it has now."""
        self.states = {id: str(state) for id, state in states.items()}
        self._ordered -= {id for id, state in self.states.items() if state == "left" and self._why_not(id)}

    def forget(self) -> None:
        """The machine's process, or the way to the pool, is lost, and all workers with it."""
        self.states.clear()
        self._ordered.clear()

    def keep(self, reasons: Mapping[str, str]) -> None:
        """These devices are kept by their owner now, and why; all others are to be lent."""
        self._kept = {id: why for id, why in reasons.items() if why}

    def end(self, why: str, grace_seconds: float) -> None:
        """Take all back, for good."""
        self._is_ending, self.grace_seconds = why, grace_seconds

    def order(self) -> tuple[list[Device], dict[str, Leaving]]:
        """The devices that are to have a worker, and those among them that are to be taken back."""
        devices, leaving = [], {}
        for device in self.devices:
            why = self._why_not(device.id)
            if not why:
                self._ordered.add(device.id)
                if self.states.get(device.id) == "left":
                    del self.states[device.id]
            elif device.id in self._ordered:
                leaving[device.id] = Leaving(why=why, grace_seconds=self.grace_seconds)
            if device.id in self._ordered:
                devices.append(device)
        return devices, leaving

    def shown(self) -> dict[str, dict[str, str]]:
        """Each device for a person: what it is called, how far it is, and why it is not lent."""
        return {
            device.id: {
                "device": str(device),
                "name": device.name,
                "state": self._state(device.id),
                "why": self._why_not(device.id),
            }
            for device in self.devices
        }

    def failures(self) -> dict[str, str]:
        """Why workers of devices do not start, by device."""
        states = {str(device): self.states.get(device.id, "") for device in self.devices}
        return {
            name: state.removeprefix(FAILING).strip() for name, state in states.items() if state.startswith(FAILING)
        }

    def is_settled(self) -> bool:
        """Whether every device that is to be lent serves the pool, or has been tried and cannot."""
        wanted = [self.states.get(device.id, "") for device in self.devices if not self._why_not(device.id)]
        return all(state == "lent" or state.startswith(FAILING) for state in wanted)

    # inside

    def _why_not(self, id: str) -> str:
        return self._is_ending or self._kept.get(id, "")

    def _state(self, id: str) -> str:
        state = self.states.get(id, "")
        if state in _UP:
            return state
        if state.startswith(FAILING):
            return FAILING.strip(":")
        return "kept" if self._why_not(id) else "waiting"
