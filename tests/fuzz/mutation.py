"""Wrong inputs made of right ones: bytes, texts and JSON values. All comes of one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

# sizes and signs on which programs stumble
BYTES = (
    b"", b"\x00", b"\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\n", b"\r\n", b"{",
    b"[" * 64, b'{"a":' * 40, b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\x91" * 80, b"%n", b"../", b"kalavai://",
    b"NaN", b"1e999", b"-0", b"\xed\xa0\x80", b"\xf0\x9f\xa6\x90", b"\x1b[2J", b"\x00" * 300,
)  # fmt: skip
TEXTS = ("", "\x00", "a" * 300, "a" * 5000, "../../etc/passwd", "\x1b[31m", "\ud800", "é", "\u202e", "__proto__", "tls://",
    "127.0.0.1:0", "[::1]:70000", "١٢٣", "0x10", "1e400", "true", "null", "kalavai://AQ", " ", "\n", "%s", "{}", "-1",
)  # fmt: skip
SCALARS = (
    None, True, False, 0, -1, 1, 255, 65536, 1 << 31, 1 << 53, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.0, -0.0, 1e-320,
    1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
MOST_BYTES = 1 << 15


class Mutator:
    """One stream of random choices."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def choose(self, among: Sequence[Any]) -> Any:
        return among[int(self.random.random() * len(among))]

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def bytes(self, valid: Sequence[bytes]) -> bytes:
        """One of the valid ones after one to four changes; sometimes noise."""
        if self.happens(0.02):
            return self.random.randbytes(int(self.random.random() * 200))
        changed = bytearray(self.choose(valid))
        for _ in range(1 + int(self.random.expovariate(1.0)) % 4):
            self._change(changed, valid)
        return bytes(changed[:MOST_BYTES])

    def _change(self, changed: bytearray, valid: Sequence[bytes]) -> None:
        at = int(self.random.random() * (len(changed) + 1))
        length = int(self.random.expovariate(0.2)) + 1
        match int(self.random.random() * 8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << int(self.random.random() * 8)
            case 1 if at < len(changed):
                changed[at] = int(self.random.random() * 256)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = self.choose(BYTES)
            case 4:
                piece = self.choose(BYTES)
                changed[at : at + len(piece)] = piece
            case 5:
                changed[at:at] = changed[at : at + length] * int(1 + self.random.random() * 3)
            case 6:
                del changed[at:]
            case _:
                other = self.choose(valid)
                changed[at:] = other[int(self.random.random() * (len(other) + 1)) :]

    def text(self, valid: Sequence[str]) -> str:
        """The same for text."""
        if self.happens(0.1):
            text = self.choose(valid)
            at = int(self.random.random() * (len(text) + 1))
            return text[:at] + self.choose(TEXTS) + text[at + self.choose((0, 0, 1, 5)) :]
        return self.bytes([each.encode("utf-8", "surrogatepass") for each in valid]).decode("utf-8", "replace")

    def value(self, valid: Any) -> Any:
        """A JSON value like this one, with one to three of its parts another, gone, or more than once."""
        for _ in range(1 + int(self.random.expovariate(1.0)) % 3):
            valid = self._other(valid)
        return valid

    def _other(self, value: Any) -> Any:
        goes_in = self.happens(0.85)
        if isinstance(value, dict) and value and goes_in:
            key = self.choose(list(value))
            match int(self.random.random() * 12):
                case 0:
                    return {name: each for name, each in value.items() if name != key}
                case 1:
                    return {**value, self.choose(TEXTS): value[key]}
                case 2:
                    return {**value, key: value[self.choose(list(value))]}
                case _:
                    return {**value, key: self._other(value[key])}
        if isinstance(value, list | tuple) and value and goes_in:
            at = int(self.random.random() * len(value))
            match int(self.random.random() * 6):
                case 0:
                    return [*value[:at], *value[at + 1 :]]
                case 1:
                    return [*value[:at], value[at], *value[at:]]
                case _:
                    return [*value[:at], self._other(value[at]), *value[at + 1 :]]
        if isinstance(value, int | float) and not isinstance(value, bool) and self.happens(0.3):
            return value + self.choose((-1, 1, 0.5, 1 << 20))
        return self._anything(value)

    def _anything(self, value: Any) -> Any:
        match int(self.random.random() * 8):
            case 0 | 1 | 2:
                return self.choose(SCALARS)
            case 3 | 4:
                return self.choose(TEXTS)
            case 5:
                return self.choose(([], {}, [[]], [None], {"": {}}, [0] * 300))
            case 6:
                # what holds much would grow beyond all that is read
                return [value] * (2 if isinstance(value, list | dict) else 100)
            case _:
                return self._deep(value)

    def _deep(self, value: Any) -> Any:
        for _ in range(self.choose((1, 10, 100))):
            value = [value] if self.happens(0.5) else {"a": value}
        return value
