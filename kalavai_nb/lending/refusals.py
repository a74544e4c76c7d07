"""What the owner of a machine hears of devices that cannot be lent: why, once, and that they are lent after all."""

from __future__ import annotations

from kalavai_nb.lending.lent import Lent
from kalavai_nb.lending.voice import Voice


class Refusals:
    """Those that were told of, of one machine."""

    def __init__(self, lent: Lent, voice: Voice) -> None:
        self._lent, self._voice = lent, voice
        self._told: dict[str, str] = {}

    @property
    def reasons(self) -> set[str]:
        """Why devices cannot be lent now."""
        return set(self._told.values())

    def tell(self) -> None:
        """Say what is new since the last time."""
        for name, why in self._lent.failures().items():
            if self._told.get(name) != why:
                self._told[name] = why
                self._voice.say(f"{name} cannot be lent: {why}. It is tried again.", "device", error=why)
        lent_now = {each["device"] for each in self._lent.shown().values() if each["state"] == "lent"}
        for name in self._told.keys() & lent_now:
            del self._told[name]
            self._voice.say(f"{name} is lent now", "device")
