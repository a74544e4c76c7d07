"""From a row to its prompt: a template, a function, or a column."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kalavai_nb.closure.fingerprint import fingerprint
from kalavai_nb.errors import OptionError
from kalavai_nb.lm.batch.columns import Columns

DEFAULT_COLUMNS = ("prompt", "messages", "text", "token_ids")

Make = Callable[[Any, Columns], Any]


@dataclass(frozen=True)
class Prompt:
    """``make(row, columns)`` gives a text, messages or token ids; what it raises is an error of that row.

    ``text`` and ``code`` are what it is recognised by: what was written, and digests of a function and what it uses.
    """

    text: str
    make: Make
    code: Mapping[str, str] = field(default_factory=dict)


def read_prompt(prompt: Any) -> Prompt:
    """Raises OptionError for a prompt that cannot be meant."""
    if prompt is None:
        return Prompt("", lambda row, columns: _default(columns))
    if isinstance(prompt, str):
        names = _names(prompt)
        if names:
            return Prompt(prompt, lambda row, columns: _filled(prompt, names, columns))
        return Prompt(prompt, lambda row, columns: _column(prompt, columns))
    if callable(prompt):
        name = getattr(prompt, "__qualname__", type(prompt).__name__)
        return Prompt(f"{name}()", lambda row, columns: prompt(row), fingerprint(prompt))
    raise OptionError(
        "prompt= wants a template such as 'Summarise: {text}', the name of a column, or a function of a row; got "
        f"{type(prompt).__name__}: {prompt!r:.80}."
    )


def _names(template: str) -> list[str]:
    """The columns that a template names."""
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise OptionError(
            f"prompt={template!r:.80} is no template: {error}. A brace that is meant as such is written twice: "
            "{{ or }}."
        ) from None
    names = [name.partition(".")[0].partition("[")[0] for name in fields]
    if any(not name or name.isdecimal() for name in names):
        raise OptionError(f"prompt={template!r:.80} has a {{}} without the name of a column in it, such as {{text}}.")
    return names


def _filled(template: str, names: list[str], columns: Columns) -> str:
    return template.format_map({name: _column(name, columns) for name in names})


def _column(name: str, columns: Columns) -> Any:
    if name not in columns:
        raise OptionError(f"there is no column {name!r}; the row has {', '.join(columns) or 'no columns'}.")
    if columns[name] is None:
        raise OptionError(f"the column {name!r} has no value in this row.")
    return columns[name]


def _default(columns: Columns) -> Any:
    for name in DEFAULT_COLUMNS:
        if name in columns:
            return _column(name, columns)
    raise OptionError(
        f"the row has no column {', '.join(DEFAULT_COLUMNS[:-1])} or {DEFAULT_COLUMNS[-1]}, only "
        f"{', '.join(columns) or 'none at all'}; say with prompt= what its prompt is."
    )
