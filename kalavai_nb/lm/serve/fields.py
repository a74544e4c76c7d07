"""The fields of a JSON body, read one by one; what nobody has read is refused, so nothing is silently ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kalavai_nb.lm.serve.faults import refused


class Fields:
    """A JSON object. ``null`` is the same as a field that is not there, as it is for OpenAI."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise refused("The body of the request has to be a JSON object.")
        self._unread: dict[str, Any] = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str, default: Any = None) -> Any:
        """Any value; whoever takes it checks it."""
        return self._unread.pop(name, default)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise wants(name, f"a number from {least} to {most}", value)
        return float(value)

    def whole(self, name: str, default: int | None, least: int, most: int) -> int | None:
        value = self.take(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            bounds = f"of at least {least}" if most >= 1 << 31 else f"from {least} to {most}"
            raise wants(name, f"a whole number {bounds}", value)
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise wants(name, "true or false", value)
        return value

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that change nothing in what is generated."""
        for name in names:
            self.take(name)

    def refuse(self, impossible: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
        """Fields that ask for what cannot be had, by name: values that ask for nothing, and why others cannot."""
        for name, (nothing, why) in impossible.items():
            value = self.take(name)
            if value is not None and value not in nothing:
                raise refused(f"`{name}` cannot be had here: {why}. Leave it out.", name, "unsupported_parameter")

    def refuse_rest(self) -> None:
        """Everything else is unknown."""
        for name in self._unread:
            raise refused(f"Unrecognized request argument supplied: {name:.100}", name, "unknown_parameter")


def wants(name: str, what: str, value: object) -> Exception:
    """The error for a field with another value than it can have."""
    return refused(f"`{name}` has to be {what}; got {value!r:.80}.", name, "invalid_value")
