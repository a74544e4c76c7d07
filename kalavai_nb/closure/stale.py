"""Which modules beside the notebook have been edited since they were imported, so that the old one goes along."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kalavai_nb.closure.carried import carried
from kalavai_nb.closure.definitions import is_beside
from kalavai_nb.closure.digest import Digester, codes_of


def stale_modules(fn: Callable[..., Any]) -> list[str]:
    """The names of modules that ``fn`` uses and whose files have other functions now than those that were imported."""
    values = [fn, *(item.value for item in carried(fn).values())]
    found = {module.__name__: module for value in values if (module := _module_of(value)) and is_beside(module)}
    return sorted(name for name, module in found.items() if _is_stale(module))


def _module_of(value: Any) -> types.ModuleType | None:
    return value if isinstance(value, types.ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")


def _is_stale(module: types.ModuleType) -> bool:
    try:
        compiled = compile(Path(str(module.__file__)).read_bytes(), str(module.__file__), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):  # in the middle of being edited, or gone
        return False
    digester = Digester()
    in_file = {digester.digest(code) for code in _nested(compiled)}
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    loaded = [code for value in own if isinstance(value, (types.FunctionType, type)) for _, code in codes_of(value)]
    return any(digester.digest(code) not in in_file for code in loaded if code.co_filename == module.__file__)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _nested(constant)
