"""Shapes that JSON of unknown origin may have, and what is left of it when it has been put into one.

A form gives back what it was given as far as that fits: what is not known is left out, as is what has the wrong type
and is not needed. Texts, lists and maps that are missing are empty. What lacks anything else that is needed raises
`Unfit`. Whoever reads the rest need not check again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Form = Callable[[Any], Any]

# the largest whole number that a browser can count to
MOST_NUMBER = 2.0**53
MOST_KEY_CHARACTERS = 256
# assigned as a key, it would change what a browser's object is
FORBIDDEN_KEY = "__proto__"


class Unfit(ValueError):
    """It does not have the form. The sentence says what was wanted."""


def text(most_characters: int = 500) -> Form:
    """A string; what is too much of it is cut off."""

    def form(value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Unfit("should be text")
        return value[:most_characters]

    return form


def name(value: Any) -> str:
    """An id: never empty, and never cut, since it would be another one."""
    if not isinstance(value, str) or not 0 < len(value) <= MOST_KEY_CHARACTERS or value == FORBIDDEN_KEY:
        raise Unfit(f"should be a name of 1 to {MOST_KEY_CHARACTERS} characters")
    return value


def number(value: Any) -> int | float:
    """A number that a browser has, too: no NaN, nothing infinite."""
    if type(value) not in (int, float) or not -MOST_NUMBER <= value <= MOST_NUMBER:
        raise Unfit("should be a number")
    return value  # type: ignore[no-any-return]


def whole(value: Any) -> int:
    """A whole number."""
    if number(value) != int(value):
        raise Unfit("should be a whole number")
    return int(value)


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Unfit("should be true or false")
    return value


def one_of(*words: str) -> Form:
    """One of these words."""

    def form(value: Any) -> str:
        if value not in words:
            raise Unfit(f"should be one of {', '.join(words)}")
        return str(value)

    return form


def percents(value: Any) -> list[int]:
    """History: whole percents, -1 where there is none. Looked at as a whole, since there are many."""
    if not isinstance(value, list) or len(value) > 600 or not set(map(type, value)) <= {int}:
        raise Unfit("should be whole percents")
    if value and not -1 <= min(value) <= max(value) <= 100:
        raise Unfit("should be percents from 0 to 100, or -1")
    return value


def pair(value: Any) -> list[int]:
    """Two whole numbers."""
    if not isinstance(value, list) or len(value) != 2:
        raise Unfit("should be two numbers")
    return [whole(each) for each in value]


def list_of(form: Form, most: int) -> Form:
    """The elements that fit; the last ``most`` of them."""

    def of(value: Any) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise Unfit("should be a list")
        return [fitted[0] for each in value[-most:] if (fitted := _fit(form, each))]

    return of


def map_of(form: Form, most: int) -> Form:
    """The values that fit, by keys of a sensible length; the first ``most`` of them."""

    def of(value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Unfit("should be an object")
        fitting: dict[str, Any] = {}
        for key, each in value.items():
            if len(fitting) < most and (fitted := _fit(form, each)) and _fit(name, key):
                fitting[key] = fitted[0]
        return fitting

    return of


def fields(needed: Mapping[str, Form], more: Mapping[str, Form] | None = None) -> Form:
    """An object that has all that is ``needed``, and of ``more`` what fits."""

    def of(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Unfit("should be an object")
        fitting = {}
        for key, form in needed.items():
            try:
                fitting[key] = form(value.get(key))
            except Unfit as error:
                raise Unfit(f"{key!r} {error}") from None
        for key, form in (more or {}).items():
            if key in value and (fitted := _fit(form, value[key])):
                fitting[key] = fitted[0]
        return fitting

    return of


def _fit(form: Form, value: Any) -> tuple[Any] | None:
    try:
        return (form(value),)
    except Unfit:
        return None
