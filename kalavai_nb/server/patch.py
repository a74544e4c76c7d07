"""Merge patches of JSON objects (RFC 7386): what is sent to browsers instead of the whole state."""

from __future__ import annotations

from typing import Any


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What `apply` makes ``new`` of ``old`` with; empty where they are the same. Neither may have a null in it."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if value is before:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            # an empty patch would be one that says nothing
            if inner := diff(before, value):
                patch[key] = inner
        elif key not in old or not _same(before, value):
            patch[key] = value
    return patch


def apply(target: Any, patch: Any) -> Any:
    """``target`` as it is with the patch; it is not changed itself. As in RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = apply(merged.get(key), value)
    return merged


def _same(first: Any, second: Any) -> bool:
    """Whether they are the same JSON; Python takes True for 1. Numbers of two types may count as different."""
    if first != second or type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        kinds = list(map(type, first))
        return kinds == list(map(type, second)) and (not {dict, list} & set(kinds) or all(map(_same, first, second)))
    return True
