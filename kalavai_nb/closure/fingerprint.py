"""Whether a function, or a config, is still the same: after a restart of the kernel, or when its cell was run again.

What counts is in `digest`: code and data do; comments, blank lines, docstrings and places do not.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from kalavai_nb.capture import pack_by_value
from kalavai_nb.closure.carried import add_name
from kalavai_nb.closure.definitions import Carried, home_of, is_installed, layers_of, own_names
from kalavai_nb.closure.digest import Digester

CODE = "code"


def fingerprint(fn: Callable[..., Any]) -> dict[str, str]:
    """{"code": digest of ``fn``, name: digest of what it uses under that name}, equal for what does equal things.

    Names are those of `closure.carried`, and those of installed modules, functions and classes, which count by the
    version of their package. A name that is used by an object or function inside some data counts as part of that data
    or stands by itself. What a function has in its attributes (``fn.calls = 3``) does not count.
    """
    digester = Digester(home_of(fn))
    layers = layers_of(fn)
    found = {CODE: Carried(CODE, fn, 0)}
    prints = {CODE: _combined([_digest(digester, part) for layer in layers for part in _code_of(layer)])}
    todo = list(own_names(fn))
    while todo:
        for item in todo:
            label = add_name(found, item)
            if label not in prints:
                prints[label] = _digest(digester, item.value)
        todo = [item for item in digester.names if not any(item.value is layer for layer in layers)]
        digester.names = []
    return prints


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The names under which two fingerprints differ, "code" first, then in the order of ``new``."""
    differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return sorted(differing, key=lambda name: name != CODE)


def config_key(config: object) -> str:
    """A short text that is the same for equal configs, also after a restart of the kernel.

    Equal as with `==`: {"a": 1, "b": 2.0} is {"b": 2, "a": 1}, a NumPy scalar is its number, lists and tuples differ.
    Unlike `==`, True is not 1. Arrays and tensors count by type, shape and content, dataclasses by class name and
    fields, functions and other objects by all they consist of. Nothing that can be pickled raises an error.
    """
    digester = Digester(loose=True)
    digests = {"": _digest(digester, config)}
    while digester.names:
        names, digester.names = digester.names, []
        digests.update({item.name: _digest(digester, item.value) for item in names if item.name not in digests})
    return _combined([part for entry in sorted(digests.items()) for part in entry])[:16]


def _code_of(layer: Any) -> list[Any]:
    """What of a layer counts as code: the rest of it (bound arguments, the object called) has names of its own."""
    if isinstance(layer, types.FunctionType) and not is_installed(layer):
        return [layer.__code__]
    return [layer] if is_installed(layer) or isinstance(layer, type) else []


def _combined(parts: list[str]) -> str:
    return Digester().text(parts)


def _digest(digester: Digester, value: Any) -> str:
    """As text. What cannot be taken apart, for being nested too deep or answering no question, counts as its pickle."""
    try:
        return digester.text(value)
    except Exception:
        try:
            return pack_by_value(value).blob.digest[:32]
        except Exception:
            return type(value).__qualname__
