"""Names of the notebook as content to send to the ranks."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cloudpickle

from kalavai_nb.blobs import Packed, pack
from kalavai_nb.errors import SendError

MAX_SEND_BYTES = 1 << 30
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|credentials?)($|_)", re.IGNORECASE)


@dataclass(frozen=True)
class Captured:
    """A name with its content, the line of the cell where it is first used, and whether it is a module."""

    name: str
    packed: Packed
    line: int
    is_module: bool


def capture(
    names: dict[str, int],
    namespace: dict[str, Any],
    *,
    extra: Mapping[str, Any] = MappingProxyType({}),
    explicit: bool = False,
) -> Iterator[Captured]:
    """The content of those ``names`` that the notebook has, and of what its functions use in turn.

    ``extra`` are values that stand for names of the notebook, or beside them. With ``explicit``, names were asked for
    by name: a missing one is an error, and neither size nor looks matter. Raises SendError for a name that cannot be
    sent, saying which, where it is used, and why.
    """
    for name in names:
        if explicit and name not in namespace and name not in extra:
            raise SendError(f"send={name} was asked for, but the notebook has no name {name!r}.")
    todo = {name: line for name, line in names.items() if name in namespace or name in extra}
    if not todo:
        return
    with local_modules_by_value():
        seen = set(todo)
        while todo:
            name = next(iter(todo))
            line = todo.pop(name)
            value = extra[name] if name in extra else namespace[name]
            if _is_notebooks_own(name, value):
                continue
            captured = _captured(name, value, namespace, line, explicit=explicit and name in names)
            yield captured
            todo.update({used: line for used in sorted(captured.packed.uses - seen)})
            seen |= captured.packed.uses


def pack_by_value(value: object) -> Packed:
    """A value that travels alone, with all the names its functions use. Raises whatever pickling it raises."""
    with local_modules_by_value():
        return pack(value)


def looks_secret(name: str, value: object) -> bool:
    """A text under a name such as ``api_key`` does not leave the notebook by itself."""
    return isinstance(value, (str, bytes)) and bool(_SECRET.search(name))


def _captured(name: str, value: object, namespace: dict[str, Any], line: int, *, explicit: bool) -> Captured:
    where = f" (used in line {line} of the cell)" if line else ""
    if looks_secret(name, value) and not explicit:
        raise SendError(
            f"`{name}`{where} looks like a credential, and every member of the pool could read it; it was not sent. "
            f"Say send={name},… if you mean it."
        )
    try:
        packed = pack(value, namespace)
    except Exception as error:
        raise SendError(
            f"`{name}`{where} cannot be sent to the ranks: {why_not_pickled(error)}. "
            f"Make it inside the cell, or leave it out with send=none."
        ) from None
    if packed.blob.total_bytes > MAX_SEND_BYTES and not explicit:
        size = human_bytes(packed.blob.total_bytes)
        raise SendError(
            f"`{name}`{where} is {size}, more than {human_bytes(MAX_SEND_BYTES)} that go along unasked. "
            f"Say send={name},… to send it, or load it inside the cell."
        )
    return Captured(name, packed, line, isinstance(value, types.ModuleType))


def human_bytes(count: float) -> str:
    """``"1.2 MB"``: decimal units, as disks and networks have them."""
    for unit in ("B", "kB", "MB"):
        if round(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextlib.contextmanager
def local_modules_by_value() -> Iterator[None]:
    """While this lasts, functions and classes of modules beside the notebook are pickled with all they are made of."""
    here = os.getcwd() + os.sep
    already = cloudpickle.list_registry_pickle_by_value()
    modules = [m for m in list(sys.modules.values()) if is_local(m, here) and m.__name__ not in already]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _is_notebooks_own(name: str, value: object) -> bool:
    """IPython's own names, which every rank has too."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    hidden = shell.user_ns_hidden if shell else {}
    return name in ("In", "Out", "__builtins__") or (name in hidden and hidden[name] is value)


def is_local(module: types.ModuleType, here: str) -> bool:
    """A module beside the notebook: the ranks get what it is now, not what their disk has."""
    file = getattr(module, "__file__", None)
    if not file or not file.startswith(here) or "site-packages" in file or file.startswith(sys.prefix):
        return False
    return module.__name__.partition(".")[0] not in ("__main__", "kalavai_nb")


def why_not_pickled(error: Exception) -> str:
    """The reason, as the end of a sentence."""
    text = str(error) or type(error).__name__
    return text[0].lower() + text[1:].rstrip(".")
