"""A row as columns that JSON can say, and as a line of the output."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

from kalavai_nb.lm.batch.files import Unreadable
from kalavai_nb.lm.text import is_messages, is_token_ids

# what a line of the output has beside the row's own columns
OURS = ("_row", "output", "finish_reason", "prompt_tokens", "output_tokens", "logprobs", "error", "_note")
TEXT_CHARACTERS = 10_000

Columns = dict[str, Any]


def columns_of(row: Any) -> tuple[Columns, str]:
    """(columns, why it is no row): a text is a row with the column "text", messages one with "messages"."""
    if isinstance(row, Mapping):
        return {str(name): value for name, value in row.items()}, ""
    if isinstance(row, str):
        return {"text": row}, ""
    if is_messages(row):
        return {"messages": list(row)}, ""
    if is_token_ids(row):
        return {"token_ids": list(row)}, ""
    if isinstance(row, Unreadable):
        return {"row": row.text}, row.reason
    kind = type(row).__name__
    return {"row": row}, f"a row is a text, a dict, messages or token ids; this is {kind}: {_text(row):.80}"


def for_json(columns: Columns) -> tuple[Columns, list[str]]:
    """(columns as JSON has them, names of those that had to be made into text).

    A column of a name that is ours is kept as ``name_of_row``.
    """
    said: Columns = {}
    as_text = []
    for name, value in columns.items():
        while name in OURS:
            name += "_of_row"
        said[name], is_whole = _said(value)
        if not is_whole:
            as_text.append(name)
    return said, as_text


def line_of(index: int, columns: Columns, as_text: list[str], result: Mapping[str, Any]) -> bytes:
    """A line of the output."""
    note = {"_note": f"made into text: {', '.join(as_text)}"} if as_text else {}
    record = {"_row": index, **columns, **result, **note}
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, as a slip of some tokenisers; JSON has a way to say it
        return json.dumps(record).encode() + b"\n"


def row_in(record: Mapping[str, Any]) -> Columns:
    """The row's own columns of a line of the output."""
    return {name: value for name, value in record.items() if name not in OURS}


def _said(value: Any) -> tuple[Any, bool]:
    try:
        return _plain(value)
    except Exception:  # nested without end, or an object that answers with an error
        return _text(value), False


def _plain(value: Any) -> tuple[Any, bool]:
    """(value as JSON has it, whether that says all)."""
    if value is None or isinstance(value, bool):
        return value, True
    if isinstance(value, str):
        return str(value), True
    if isinstance(value, int):
        return int(value), True
    if isinstance(value, float):
        return (float(value), True) if math.isfinite(value) else (str(float(value)), False)
    if isinstance(value, Mapping):
        pairs = {str(key): _plain(each) for key, each in value.items()}
        whole = all(isinstance(key, str) for key in value) and all(is_whole for _, is_whole in pairs.values())
        return {key: each for key, (each, _) in pairs.items()}, whole
    if isinstance(value, list | tuple):
        parts = [_plain(each) for each in value]
        return [each for each, _ in parts], all(is_whole for _, is_whole in parts)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat(), False
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace"), False
    if callable(as_list := getattr(value, "tolist", None)):  # numbers and arrays of NumPy and torch
        return _plain(as_list())
    return _text(value), False


def _text(value: Any) -> str:
    try:
        return str(value)[:TEXT_CHARACTERS]
    except Exception:
        return f"<{type(value).__name__}>"
