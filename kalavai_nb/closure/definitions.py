"""Functions and classes as they are sent: which of them go whole, what they consist of, and which names they use.

Read off the bytecode and off `__module__`, since that is what cloudpickle goes by.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kalavai_nb.capture import is_local

# how many elements of a list or dict are looked into
MAX_ELEMENTS = 1000
# what cloudpickle takes for a use of a global
_GLOBAL_OPS = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"}


@dataclass(frozen=True)
class Carried:
    """A name that a function uses from outside itself.

    ``user`` is the function that uses it, ``line`` the line of its file or cell where it does so first, 0 if unknown.
    """

    name: str
    value: Any
    line: int
    user: str = ""


def is_by_value(definition: Any) -> bool:
    """Whether cloudpickle sends this function or class whole, rather than its name."""
    name = getattr(definition, "__module__", None) or "__main__"
    module = sys.modules.get(name)
    if name == "builtins":  # has types without a name, such as that of functions
        return False
    if module is None or name == "__main__" or is_beside(module):
        return True
    if isinstance(definition, type):
        # many types of C are not where they say they are, but none of them goes whole
        return "<locals>" in definition.__qualname__
    found: Any = module
    for part in definition.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not definition


def is_beside(module: types.ModuleType) -> bool:
    """Whether a module lies beside the notebook, so that it travels as it is now."""
    return is_local(module, os.getcwd() + os.sep)


def is_installed(value: Any) -> bool:
    """Whether it is a module, function or class that every worker has, and not data."""
    if isinstance(value, types.ModuleType):
        return not is_beside(value)
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    is_definition = callable(value) and isinstance(getattr(value, "__qualname__", None), str)
    return is_definition and not is_by_value(value)


def called(fn: Any) -> str:
    """What a person calls this function: ``train``, ``Net.forward``, or "the function" for a lambda."""
    name = str(getattr(fn, "__qualname__", "") or type(fn).__qualname__).rpartition("<locals>.")[2]
    return "the function" if name.startswith("<") else name


def layers_of(fn: Any) -> list[Any]:
    """``fn`` and what is called in its place in the end: through partials, methods, decorators, callable objects."""
    layers: list[Any] = []
    while fn is not None and not any(fn is layer for layer in layers):
        layers.append(fn)
        if is_installed(fn):
            break
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif isinstance(fn, type):
            fn = None
        elif isinstance(fn, types.FunctionType) or callable(getattr(fn, "__wrapped__", None)):
            fn = getattr(fn, "__wrapped__", None)
        else:
            call = inspect.getattr_static(type(fn), "__call__", None)
            fn = call if isinstance(call, types.FunctionType) else None
    return layers


def own_names(fn: Any) -> Iterator[Carried]:
    """The names that ``fn`` uses itself, in any of its layers; "self" is the object that is called."""
    layers, home = layers_of(fn), home_of(fn)
    for layer in layers:
        if isinstance(layer, functools.partial):
            yield from _bound_by(layer)
        elif isinstance(layer, types.MethodType):
            yield Carried("cls" if isinstance(layer.__self__, type) else "self", layer.__self__, 0, called(layer))
        elif isinstance(layer, types.FunctionType):
            # a decorator's name for what it decorates, and a function's for itself, are no names from outside
            yield from (item for item in names_of(layer, home) if not any(item.value is other for other in layers))
        elif not (is_installed(layer) or isinstance(layer, type) or hasattr(layer, "__wrapped__")):
            yield Carried("self", layer, 0, called(layer))


def home_of(fn: Any) -> str:
    """The module whose names need no prefix: the one that ``fn`` was written in."""
    last = layers_of(fn)[-1]
    if isinstance(last, types.FunctionType):
        return str(last.__globals__.get("__name__", "__main__"))
    return str(getattr(last, "__module__", None) or "__main__")


def names_of(function: types.FunctionType, home: str) -> Iterator[Carried]:
    """A function's cells, globals and defaults, each group by line. Nothing for a function that every worker has."""
    if is_by_value(function):
        yield from cells_of(function, home)
        yield from globals_of(function, home)
        line = _line(function.__code__.co_firstlineno, function, home)
        for name, value in defaults_of(function).items():
            yield Carried(name, value, line, called(function))


def cells_of(function: types.FunctionType, home: str) -> Iterator[Carried]:
    """What a function uses of the functions around it, by line."""
    lines = _first_lines(function.__code__)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name in sorted(cells.keys() - {"__class__"}, key=lambda name: (lines.get(name, 0), name)):
        with contextlib.suppress(ValueError):  # a cell that nothing has been put into yet
            value = cells[name].cell_contents
            yield Carried(name, value, _line(lines.get(name, 0), function, home), called(function))


def globals_of(function: types.FunctionType, home: str) -> Iterator[Carried]:
    """What a function uses of its module, by line; nothing if that is an installed one."""
    prefix, lines = _prefix(function, home), _first_lines(function.__code__)
    if prefix is None:
        return
    for name in sorted(lines.keys() - {*function.__code__.co_freevars}, key=lambda name: (lines[name], name)):
        if name in function.__globals__ and not name.startswith("__"):
            yield Carried(prefix + name, function.__globals__[name], lines[name], called(function))


def defaults_of(function: types.FunctionType) -> dict[str, Any]:
    """{parameter: its default}."""
    parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    named = zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True)
    return {**dict(named), **(function.__kwdefaults__ or {})}


def parts_of(value: Any) -> list[Any]:
    """What belongs to a value beside the names it uses, and may hold functions that use names in turn."""
    if is_installed(value):
        return []
    if isinstance(value, type):
        return [*vars(value).values(), *value.__bases__]
    match value:
        case dict():
            return list(value.values())[:MAX_ELEMENTS]
        case list() | tuple() | set() | frozenset():
            return list(value)[:MAX_ELEMENTS]
        case functools.partial():
            return [value.func, *value.args, *value.keywords.values()]
        case types.MethodType():
            return [value.__func__, value.__self__]
        case staticmethod() | classmethod():
            return [value.__func__]
        case property():
            return [value.fget, value.fset, value.fdel]
        case functools.cached_property():
            return [value.func]
        case types.FunctionType():
            return list(vars(value).values())
    if is_by_value(type(value)):
        return [type(value), *getattr(value, "__dict__", {}).values()]
    return [value.__wrapped__] if callable(value) and hasattr(value, "__wrapped__") else []


def _prefix(function: types.FunctionType, home: str) -> str | None:
    """What stands before the names of the module that the function lives in; None where that is an installed one.

    Decorators of installed packages pass for functions of the notebook by name, so it is asked whose globals they have.
    """
    name = function.__globals__.get("__name__", "__main__")
    module = sys.modules.get(name)
    if name in ("__main__", home):
        return ""
    return f"{name}." if module is not None and is_beside(module) else None


def _line(line: int, function: types.FunctionType, home: str) -> int:
    """0 for a line of an installed file, which would pass for one of the notebook."""
    return 0 if _prefix(function, home) is None else line


def _bound_by(partial: functools.partial[Any]) -> Iterator[Carried]:
    names: list[str] = []
    with contextlib.suppress(TypeError, ValueError):
        names = list(inspect.signature(partial.func).parameters)
    names += [f"args[{position}]" for position in range(len(names), len(partial.args))]
    for name, value in [*zip(names, partial.args, strict=False), *partial.keywords.items()]:
        yield Carried(name, value, 0, called(partial.func))


def _first_lines(code: types.CodeType) -> dict[str, int]:
    """{name: line of first use} of the globals and free variables of this code and of the functions in it."""
    lines: dict[str, int] = {}
    for instruction in dis.get_instructions(code):
        free = instruction.opcode in dis.hasfree and instruction.opname not in ("LOAD_CLOSURE", "MAKE_CELL")
        if instruction.opname in _GLOBAL_OPS or (free and instruction.argval in code.co_freevars):
            line = (instruction.positions.lineno or 0) if instruction.positions else 0
            lines[instruction.argval] = min(line, lines.get(instruction.argval, line))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for name, line in _first_lines(constant).items():
                lines[name] = min(line, lines.get(name, line))
    return lines
