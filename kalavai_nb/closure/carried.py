"""What a function carries along when it is sent to the pool whole: which names, and which of them are large.

Functions and classes of the notebook, and of modules beside it, go by value: with all the names that they use from
outside themselves. Whoever wrote the function sees none of that.
"""

from __future__ import annotations

import contextlib
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from kalavai_nb.blobs import interactive_namespace, pack
from kalavai_nb.capture import local_modules_by_value
from kalavai_nb.closure.definitions import Carried, home_of, is_installed, layers_of, names_of, own_names, parts_of

# how many values are looked into for functions: far more than a person can mean to send
_MAX_VALUES = 20_000


def carried(fn: Callable[..., Any]) -> dict[str, Carried]:
    """{name: what travels under it}: closure cells, globals, defaults and bound arguments of ``fn`` and all it uses.

    In the order in which they are met. A name of a module beside the notebook is called ``module.name``, unless ``fn``
    is of that module itself; of two unlike values under one name, the second is called ``function.name``. What every
    worker has anyway (installed modules, and their functions and classes) is left out.
    """
    found: dict[str, Carried] = {}
    home, layers = home_of(fn), layers_of(fn)
    seen = {id(layer): layer for layer in layers}
    todo: deque[Any] = deque()

    def look_into(items: list[Carried], others: list[Any]) -> None:
        for item in items:
            if not is_installed(item.value):
                add_name(found, item)
        for value in [*(item.value for item in items), *others]:
            if id(value) not in seen and not is_installed(value):
                seen[id(value)] = value
                todo.append(value)

    look_into(list(own_names(fn)), [part for layer in layers for part in parts_of(layer)])
    while todo and len(seen) < _MAX_VALUES:
        value = todo.popleft()
        names = list(names_of(value, home)) if isinstance(value, types.FunctionType) else []
        look_into([item for item in names if not any(item.value is layer for layer in layers)], parts_of(value))
    return found


def add_name(found: dict[str, Carried], item: Carried) -> str:
    """Add an item under its name, or a longer one where that means something else already; returns that name."""
    long = f"{item.user}.{item.name}"
    for label in [item.name, long, *(f"{long} ({number})" for number in range(2, _MAX_VALUES))]:
        if label not in found:
            found[label] = Carried(label, item.value, item.line, item.user)
        if found[label].value is item.value:
            return label
    return long


def large(fn: Callable[..., Any], from_bytes: int = 1_000_000) -> list[tuple[str, int]]:
    """[(name, bytes)] of the carried values that are at least so large, biggest first."""
    items = {id(item.value): item for item in reversed(carried(fn).values())}
    namespace = getattr(layers_of(fn)[-1], "__globals__", None) or interactive_namespace()
    with local_modules_by_value():
        sizes = [(item.name, _bytes_of(item.value, namespace)) for item in items.values()]
    return sorted([(name, size) for name, size in sizes if size >= from_bytes], key=lambda entry: -entry[1])


def _bytes_of(value: Any, namespace: dict[str, Any]) -> int:
    """Bytes that a value takes on its way, apart from the names that functions in it use; 0 for what cannot go."""
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return _bytes_of(value.__self__, namespace) if isinstance(value, types.MethodType) else 0
    if isinstance(value, type):
        own = [child for name, child in vars(value).items() if not name.startswith("__")]
        return sum(_bytes_of(child, namespace) for child in own if not hasattr(child, "__get__"))
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if callable(storage := getattr(value, "untyped_storage", None)):
        # a view of a tensor takes all that it is a view of along
        return int(storage().nbytes())
    if callable(usage := getattr(value, "memory_usage", None)):
        total = usage(deep=True)
        return int(total if isinstance(total, int) else total.sum())
    if isinstance(nbytes := getattr(value, "nbytes", None), int):
        return nbytes
    with contextlib.suppress(Exception):
        return pack(value, namespace).blob.total_bytes
    return 0
