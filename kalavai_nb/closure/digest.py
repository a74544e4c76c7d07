"""The content of values as digests that are the same in every process.

The bytes of a pickle will not do: they hold memory addresses (tensors), random class ids (classes of the notebook),
file names and lines (functions), and depend on hash seeds (sets) and on which equal strings are one object. So values
are taken apart here the way pickle does it, by `__reduce_ex__`, and each part is hashed by what it is:

- numbers, text, arrays and tensors by type and content; dicts and sets whatever their order;
- functions and classes that travel by value by their bytecode, defaults, closures and attributes, without names of
  files, line numbers, docstrings and annotations; those that every worker has by name and version of their package;
- modules beside the notebook by their file, less comments, and by the functions that were loaded from it;
- an object that cannot be taken apart (a lock, a handle of a library) by its type alone.

What an object puts into its own pickle is beyond reach: one that stores the time, or an address, never looks the same.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import dataclasses
import hashlib
import inspect
import pickle
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cloudpickle

from kalavai_nb.closure.definitions import Carried, cells_of, defaults_of, globals_of, is_installed

# a word for what kind of thing a value is, and the digests or bytes of its parts
Content = tuple[str, Iterable[bytes | memoryview]]
_ATOMS = (type(None), type(...), bool, int, float, complex, str, bytes)
# of the flags of code those that say what kind of function it is
_FLAGS = (
    inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR
)  # fmt: skip
# from how many elements on a list is looked at whole
_LONG = 1000
# of a class: where it was written, what it says of itself, and what Python or abc keep there
_NOT_CONTENT = {
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_abc_impl",
}  # fmt: skip


class Digester:
    """Digests of values. ``names`` collects the globals that the functions met on the way use.

    ``home`` is the module whose names need no prefix. A ``loose`` one takes for the same what Python's `==` does: 1 and
    1.0, a NumPy scalar and a number; a dataclass is then its class's name and its fields, whatever its methods.
    """

    def __init__(self, home: str = "__main__", *, loose: bool = False) -> None:
        self.names: list[Carried] = []
        self._home = home
        self._loose = loose
        # values are kept, lest another one gets the same id
        self._known: dict[int, tuple[Any, bytes]] = {}
        self._open: dict[int, int] = {}

    def text(self, value: Any) -> str:
        """The digest as 32 letters and digits. Raises RecursionError for what is nested too deep."""
        return _hash("", [self.digest(value)]).hex()[:32]

    def digest(self, value: Any) -> bytes:
        """Bytes that only equal values share: up to 64 of a short text or number itself, else 32 that are a hash."""
        if self._loose:
            value = _as_python(value)
        if type(value) in _ATOMS:
            content = _text(value)
            short = type(value).__name__.encode() + b" " + content
            return short if len(short) <= 64 else _hash(type(value).__name__, [content])
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            return _hash("cycle", [_text(len(self._open) - self._open[id(value)])])
        self._open[id(value)] = len(self._open)
        try:
            digest = _hash(*self._content(value))
        finally:
            del self._open[id(value)]
        self._known[id(value)] = (value, digest)
        return digest

    def _content(self, value: Any) -> Content:
        kind = type(value)
        if kind in (list, tuple):
            return kind.__name__, self._elements(value)
        if kind is dict:
            return "dict", sorted(_pair(self.digest(key), self.digest(child)) for key, child in value.items())
        if isinstance(value, (set, frozenset)):
            return "set", [self.digest(kind), *sorted(map(self.digest, value))]
        if kind in (bytearray, memoryview, pickle.PickleBuffer):
            return "buffer", [memoryview(value).tobytes()]
        if kind is types.CodeType:
            return "code", _code(value)
        if is_installed(value):
            return "reference", [self._reference(value)]
        if isinstance(value, types.ModuleType):
            return "module", self._module(value)
        if kind is types.FunctionType:
            return "function", self._function(value)
        if isinstance(value, type):
            return "class", self._class(value)
        if self._loose and dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return "dataclass", [_text(kind.__qualname__), self.digest(fields)]
        return _array(self, value) or _tensor(value) or self._object(value)

    def _elements(self, values: list[Any] | tuple[Any, ...]) -> Iterable[bytes]:
        if len(values) > _LONG and not self._loose and {*map(type, values)} <= {*_ATOMS}:
            return [_text(values)]
        return map(self.digest, values)

    def _function(self, function: types.FunctionType) -> Iterable[bytes]:
        self.names += globals_of(function, self._home)
        cells = {item.name: item.value for item in cells_of(function, self._home)}
        wrapped = getattr(function, "__wrapped__", None)
        return map(self.digest, (function.__code__, cells, defaults_of(function), wrapped))

    def _class(self, definition: type) -> Iterable[bytes]:
        own = {name: value for name, value in vars(definition).items() if name not in _NOT_CONTENT}
        return map(self.digest, (type(definition), definition.__bases__, own))

    def _module(self, module: types.ModuleType) -> Iterable[bytes]:
        """Its file, and what was loaded from it, which may be older; modules beside the notebook that it uses alike."""
        own, others = [], {}
        for name, value in vars(module).items():
            other = value if isinstance(value, types.ModuleType) else sys.modules.get(_module_name(value))
            if isinstance(value, (types.FunctionType, type)) and other is module:
                own.append((name, codes_of(value)))
            elif other is not None and not is_installed(other):
                others[other.__name__] = other
        return [_source(module), *map(self.digest, (own, others))]

    def _object(self, value: Any) -> Content:
        """Anything else, taken apart as pickle does it."""
        try:
            reducer = cloudpickle.Pickler.dispatch_table.get(type(value))
            reduced = reducer(value) if reducer else value.__reduce_ex__(5)
        except RecursionError:
            raise
        except Exception:
            return "opaque", [_text(type(value).__qualname__)]
        if isinstance(reduced, str):
            # a cached function is pickled by name, but it is what it wraps
            wrapped = getattr(value, "__wrapped__", None)
            return "named", [self._reference(value, reduced) if wrapped is None else self.digest(wrapped)]
        make, arguments, *rest = reduced
        state, elements, items = [*rest, None, None, None][:3]
        return "object", map(self.digest, (make, arguments, state, [*(elements or ())], [*(items or ())]))

    def _reference(self, value: Any, name: str = "") -> bytes:
        """What every worker has, by its name and, unless loose, the version of its package."""
        is_module = isinstance(value, types.ModuleType)
        module = value.__name__ if is_module else _module_name(value)
        name = name or ("" if is_module else value.__qualname__)
        version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")
        return _text((module, name, "" if self._loose else str(version)))


def _array(digester: Digester, value: Any) -> Content | None:
    """A NumPy array, in any layout."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) not in (numpy.ndarray, numpy.memmap):
        return None
    if value.dtype.hasobject or not value.dtype.itemsize:
        content: bytes | memoryview = digester.digest(value.tolist())
    else:
        content = memoryview(numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8))
    return "array", [_text((repr(value.dtype), value.shape)), content]


def _tensor(value: Any) -> Content | None:
    """A dense tensor, on any device."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_meta:
        return None
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    about = (type(value).__qualname__, str(value.dtype), tuple(value.shape), value.requires_grad)
    return "tensor", [_text(about), memoryview(plain.view(torch.uint8).numpy())]


def _code(code: types.CodeType) -> Iterable[bytes]:
    """Bytecode without the places it came from. ``co_code`` holds neither caches nor specialised instructions."""
    constants = list(code.co_consts)
    if constants and isinstance(constants[0], str) and _may_have_docstring(code):
        constants[0] = None
    variables = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS)
    # strict also where a config is looked at loosely: 1 and 1.0 are not the same code
    return [code.co_code, code.co_exceptiontable, Digester().digest(constants), _text((variables, arguments))]


def _may_have_docstring(code: types.CodeType) -> bool:
    # the flag is there from Python 3.14
    flag = getattr(inspect, "CO_HAS_DOCSTRING", inspect.CO_OPTIMIZED)
    return bool(code.co_flags & flag) and not code.co_name.startswith("<")


def codes_of(definition: Any) -> list[Any]:
    """The bytecode of a function, or of all functions in a class, by name."""
    functions = vars(definition) if isinstance(definition, type) else {"": definition}
    plain = {name: inspect.unwrap(getattr(value, "__func__", value)) for name, value in functions.items()}
    return [(name, value.__code__) for name, value in sorted(plain.items()) if hasattr(value, "__code__")]


def _source(module: types.ModuleType) -> bytes:
    """What the file of a module says, less comments and blank lines if it is Python."""
    content = b""
    with contextlib.suppress(OSError):
        content = Path(str(module.__file__)).read_bytes()
    with contextlib.suppress(SyntaxError, ValueError):
        return _text(ast.dump(ast.parse(content)))
    return content


def _module_name(value: Any) -> str:
    return str(getattr(value, "__module__", None) or type(value).__module__)


def _as_python(value: Any) -> Any:
    """Of values that are equal to Python, one."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    if type(value) is float and value.is_integer():
        return int(value)
    return dict(value) if type(value) in (collections.OrderedDict, collections.defaultdict) else value


def _pair(one: bytes, other: bytes) -> bytes:
    return len(one).to_bytes(8, "big") + one + other


def _text(value: Any) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass")


def _hash(tag: str, pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256(tag.encode())
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.digest()
