"""Which part of a function or value cannot be pickled: found by pickling each part alone.

An error of pickle names a type ("cannot pickle '_thread.lock' object"), not the variable that brought it along.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

from kalavai_nb.blobs import pack
from kalavai_nb.capture import local_modules_by_value, why_not_pickled
from kalavai_nb.closure.carried import carried
from kalavai_nb.closure.definitions import Carried, called, is_by_value, layers_of

_MAX_DEPTH = 4
_MAX_CULPRITS = 3
_DEFINITIONS = (types.FunctionType, type)


def why_not(value: object, error: Exception, what: str = "") -> str:
    """Why ``value`` cannot be pickled, which raised ``error``: a sentence that names the part to blame, one to help.

    ``value`` is a function, or else goes by the name ``what``, such as "config": then its part is `config['lock']`.
    Each part is pickled alone, so this takes as long as sending all of them.
    """
    with local_modules_by_value():
        if not what:
            culprits = _culprits(value)
        elif culprit := _dig(what, value, ""):
            culprits = (_culprits(culprit.value) if isinstance(culprit.value, types.FunctionType) else []) or [culprit]
        else:
            culprits = []
        return (
            _sentence(culprits) if culprits else f"{what or called(value)} cannot be pickled: {why_not_pickled(error)}."
        )


@dataclass(frozen=True)
class _Culprit:
    """A part that cannot be pickled. ``exact`` if it is not for the sake of something that it refers to."""

    label: str
    value: Any
    place: str
    error: Exception
    exact: bool = True
    line: int = 0

    def __str__(self) -> str:
        where = (
            f" (line {self.line} of {self.place})" if self.line else f" (used by {self.place})" if self.place else ""
        )
        return f"`{self.label}`{where}"


def _sentence(culprits: list[_Culprit]) -> str:
    names = [str(culprit) for culprit in culprits[:_MAX_CULPRITS]]
    more = len(culprits) - len(names)
    names += [f"{more} more"] if more else []
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    reasons = "; ".join(dict.fromkeys(why_not_pickled(culprit.error) for culprit in culprits[:_MAX_CULPRITS]))
    places = {culprit.place for culprit in culprits}
    place = "the functions that use them" if len(places) > 1 else culprits[0].place or "the function"
    them = "them" if len(culprits) > 1 else "it"
    return f"{listed} cannot be pickled: {reasons}. Make {them} inside {place}, or leave {them} out."


def _culprits(fn: Any) -> list[_Culprit]:
    """What ``fn`` carries that cannot be pickled: data first, since a function fails for what it uses in turn."""
    items = list(carried(fn).values())
    data = [item for item in items if not isinstance(item.value, _DEFINITIONS)]
    definitions = [item for item in items if isinstance(item.value, _DEFINITIONS)]
    definitions += [Carried(called(layer), layer, 0) for layer in layers_of(fn) if isinstance(layer, _DEFINITIONS)]
    vague: list[_Culprit] = []
    for group in (data, definitions):
        found = [culprit for item in group if (culprit := _dig(item.name, item.value, item.user, item.line))]
        if exact := [culprit for culprit in found if culprit.exact]:
            # one lock under two names is one to blame
            return list({id(culprit.value): culprit for culprit in reversed(exact)}.values())[::-1]
        vague += found
    return [culprit for culprit in vague if not isinstance(culprit.value, _DEFINITIONS)]


def _dig(label: str, value: Any, place: str, line: int = 0, depth: int = _MAX_DEPTH) -> _Culprit | None:
    """The innermost part of ``value`` that cannot be pickled, down to ``depth``; None if all of it can."""
    if (error := _failure(value)) is None:
        return None
    children = _children(value)
    if depth and children and _failure([child for _, child in children]):
        while len(children) > 1:
            half = children[: len(children) // 2]
            children = half if _failure([child for _, child in half]) else children[len(half) :]
        suffix, child = children[0]
        return _dig(label + suffix, child, place, line, depth - 1)
    # the class of an object fails for what its methods use
    defined = isinstance(value, _DEFINITIONS) or is_by_value(type(value))
    exact = not depth or not (children or defined)
    return _Culprit(label, value, place, error, exact, line)


def _failure(value: Any) -> Exception | None:
    try:
        pack(value)
    except Exception as error:
        return error
    return None


def _children(value: Any) -> list[tuple[str, Any]]:
    """[(how a part is written behind the name of the whole, the part)] of all that is pickled with it."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{position}]", child) for position, child in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [("", child) for child in value]
    if isinstance(value, functools.partial):
        named = [(f".keywords[{key!r}]", child) for key, child in value.keywords.items()]
        return [*named, *((f".args[{position}]", child) for position, child in enumerate(value.args))]
    if isinstance(value, (types.ModuleType, *_DEFINITIONS)):
        own = {name: child for name, child in vars(value).items() if not name.startswith("__")}
        return [(f".{name}", child) for name, child in own.items() if not isinstance(child, types.FunctionType)]
    try:
        _, arguments, *rest = value.__reduce_ex__(4)
    except Exception:
        return []
    states = [
        state for state in (rest[0] if rest and isinstance(rest[0], tuple) else rest[:1]) if isinstance(state, dict)
    ]
    children = [(f".{name}", child) for state in states for name, child in state.items()]
    # a torch module keeps what a person calls `model.fc` in a dict
    nested = [(f".{name}", child) for key, inner in children if key == "._modules" for name, child in inner.items()]
    return [*nested, *children] or [("", argument) for argument in arguments if not isinstance(argument, type)]
