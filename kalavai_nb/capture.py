"""Which names of the notebook a cell needs, and those names as content to send."""

from __future__ import annotations

import ast
import contextlib
import dis
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
# statements of which a part may not have run, so that the names they bind may still be free afterwards
_BRANCHING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match)
# magics whose argument, or body, is Python that runs in the cell's own namespace
_PYTHON_MAGICS = {"time", "timeit", "prun", "capture", "memit", "mprun"}


@dataclass(frozen=True)
class Captured:
    """A name with its content, the line of the cell where it is first used, and whether it is a module."""

    name: str
    packed: Packed
    line: int
    is_module: bool


def free_names(source: str) -> dict[str, int]:
    """{name: line of first use} of the names that ``source`` reads before it binds them.

    ``source`` may hold IPython's syntax. Raises SyntaxError, with the cell's own lines, where it cannot run.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    tree = ast.parse(TransformerManager().transform_cell(source), filename="<cell>")
    bound: set[str] = set()
    direct: dict[str, int] = {}
    deferred: dict[str, int] = {}
    for statement in tree.body:
        code = _compiled(statement)
        now, later, stored = _uses(code)
        for text in _python_in_magics(statement):
            for name in free_names(text):
                now.setdefault(name, statement.lineno)
        direct.update({name: line for name, line in now.items() if name not in bound | direct.keys()})
        deferred.update({name: line for name, line in later.items() if name not in deferred})
        if not isinstance(statement, _BRANCHING):
            bound |= stored
    # a function's names are read when it is called, so a name bound anywhere in the cell will do
    return {**{name: line for name, line in deferred.items() if name not in bound}, **direct}


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
    with _local_modules_by_value():
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


def pack_argument(what: str, value: object) -> Packed:
    """A value that travels alone, with all the names its functions use. Raises SendError, naming ``what``."""
    with _local_modules_by_value():
        try:
            return pack(value)
        except Exception as error:
            raise SendError(f"{what} cannot be sent to the pool: {_why(error)}.") from None


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
            f"`{name}`{where} cannot be sent to the ranks: {_why(error)}. "
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
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextlib.contextmanager
def _local_modules_by_value() -> Iterator[None]:
    here = os.getcwd() + os.sep
    modules = [module for module in list(sys.modules.values()) if _is_local(module, here)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _uses(code: types.CodeType) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """({name: line} read at once before it is bound, the same read by functions, names bound)."""
    now: dict[str, int] = {}
    later: dict[str, int] = {}
    stored: set[str] = set()
    for instruction in dis.get_instructions(code):
        name, line = instruction.argval, (instruction.positions.lineno or 0) if instruction.positions else 0
        if instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
            stored.add(name)
        elif instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL", "DELETE_NAME") and name not in stored:
            now.setdefault(name, line)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_now, inner_later, _ = _uses(constant)
            later = {**inner_later, **inner_now, **later}
    return now, later, stored


def _compiled(statement: ast.stmt) -> types.CodeType:
    module = ast.Module([statement], [])
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: types.CodeType = compile(module, "<cell>", "exec", flags=flags, dont_inherit=True)
    return code


def _python_in_magics(statement: ast.stmt) -> Iterator[str]:
    """Python that IPython's transformation has turned into text: ``%time f(x)``, ``%%time`` cells, ``!ls {x}``."""
    for node in ast.walk(statement):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if node.func.attr in ("run_line_magic", "run_cell_magic") and texts[:1] and texts[0] in _PYTHON_MAGICS:
            candidates = texts[1:]
        elif node.func.attr in ("system", "getoutput", "run_line_magic", "run_cell_magic"):
            candidates = re.findall(r"\{(.+?)\}|\$(\w+)", " ".join(texts))
            candidates = [part for pair in candidates for part in pair if part]
        else:
            continue
        for candidate in candidates:
            # options of the magic stand before its statement
            text = re.sub(r"^(\s*-\w+(\s+\d+)?)+\s+", "", candidate)
            try:
                ast.parse(text)
            except SyntaxError:
                continue
            yield text


def _is_notebooks_own(name: str, value: object) -> bool:
    """IPython's own names, which every rank has too."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    hidden = shell.user_ns_hidden if shell else {}
    return name in ("In", "Out", "__builtins__") or (name in hidden and hidden[name] is value)


def _is_local(module: types.ModuleType, here: str) -> bool:
    """A module beside the notebook: the ranks get what it is now, not what their disk has."""
    file = getattr(module, "__file__", None)
    if not file or not file.startswith(here) or "site-packages" in file or file.startswith(sys.prefix):
        return False
    return module.__name__.partition(".")[0] not in ("__main__", "kalavai_nb")


def _why(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text[0].lower() + text[1:].rstrip(".")
