"""Dataclasses made of what others say of themselves: people may say anything, and other versions say other things.

What a dataclass does not know is ignored; what is not of its kind is as if it had not been said. Texts are short, and
have nothing in them that a terminal would obey.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

MOST_CHARACTERS = 500
MOST_ITEMS = 4096

Made = TypeVar("Made")
Form = Callable[[Any], Any]


def made(noun: type[Made], said: Mapping[str, Any]) -> Made:
    """One of this kind. Raises TypeError where a field without a default was not said, or is no such thing."""
    found = {}
    kind: Any = noun
    forms: dict[str, Form] = _forms(kind)
    for name, form in forms.items():
        if name in said:
            try:
                found[name] = form(said[name])
            except (TypeError, ValueError, AttributeError):
                continue
    return noun(**found)


def text(value: Any) -> str:
    """One line. Raises TypeError for what is no text."""
    if not isinstance(value, str):
        raise TypeError(f"wanted a text, got {type(value).__name__}")
    short = value[:MOST_CHARACTERS]
    if short.isprintable():
        return short
    # what cannot be printed cannot always be sent either
    return "".join(each if each.isprintable() else " " for each in short)


def number(value: Any) -> float:
    """A finite number. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"wanted a number, got {type(value).__name__}")
    # compared, since a whole number may be too large to be made a float
    if not abs(value) <= sys.float_info.max:
        raise ValueError(f"wanted a finite number, got {value}")
    return value


def whole(value: Any) -> int:
    """A whole number. Raises TypeError or ValueError."""
    return int(number(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"wanted true or false, got {type(value).__name__}")
    return value


def _many(form: Form) -> Form:
    return lambda value: tuple(form(each) for each in list(value)[:MOST_ITEMS])


def _or_none(form: Form) -> Form:
    return lambda value: None if value is None else form(value)


def texts(value: Any) -> dict[str, str]:
    """Texts by text."""
    return {text(key): text(each) for key, each in list(value.items())[:MOST_ITEMS]}


def wholes(value: Any) -> dict[str, int]:
    """Whole numbers by text."""
    return {text(key): whole(each) for key, each in list(value.items())[:MOST_ITEMS]}


def _stage(value: Any) -> tuple[str, tuple[int, int]]:
    device, (start, end) = value
    return text(device), (whole(start), whole(end))


_BY_ANNOTATION: dict[str, Form] = {
    "str": text,
    "int": whole,
    "float": number,
    "bool": _flag,
    "int | None": _or_none(whole),
    "float | None": _or_none(number),
    "tuple[str, ...]": _many(text),
    "tuple[int, ...]": _many(whole),
    "dict[str, int]": wholes,
    "tuple[tuple[str, tuple[int, int]], ...]": _many(_stage),
}


@cache
def _forms(noun: Any) -> dict[str, Form]:
    """How each field of a dataclass has to be; those that are of no plain kind are made by whoever knows them."""
    fields = dataclasses.fields(noun)
    return {field.name: _BY_ANNOTATION[str(field.type)] for field in fields if str(field.type) in _BY_ANNOTATION}
