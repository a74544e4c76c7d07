"""Pages of the site that are made of the sources at each build, so that they say what the sources say."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kalavai_nb import cli, errors, ledger, magics, reading, snapshot, state
from kalavai_nb.registry.asking import VERBS

COLUMNS = "84"
# where links of examples lead to here
LINKS = {"../docs/": "../../", "two_machines.md": "two_machines_by_hand.md"}


def make(folder: Path, root: Path) -> None:
    """Write all of them into ``folder``, which git does not see."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "examples").mkdir(parents=True)
    (folder / ".gitignore").write_text("*\n")
    for example in sorted([*(root / "examples").glob("*.ipynb"), *(root / "examples").glob("*.md")]):
        said = example.read_text()
        for there, here in LINKS.items():
            said = said.replace(f"]({there}", f"]({here}")
        (folder / "examples" / LINKS.get(example.name, example.name)).write_text(said)
    pages = {
        "command-line": command_line(),
        "pool-help": fenced(magics.HELP, "text"),
        "errors": fenced(error_tree(), "text"),
        "ledger": ledger_rules(),
        "snapshot": snapshot_fields(),
        "orders": ", ".join(f"`{verb}`" for verb in VERBS) + ".\n",
    }
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```\n"


def error_tree() -> str:
    """The picture that `errors` opens with."""
    return (errors.__doc__ or "").partition("\n\n")[2]


def ledger_rules() -> str:
    """The numbered rules that `ledger` opens with."""
    return (ledger.__doc__ or "").split("\n\n")[2] + "\n"


def command_line() -> str:
    """What each verb says with ``--help``."""
    before = os.environ.get("COLUMNS")
    # argparse breaks its lines by the width of the terminal
    os.environ["COLUMNS"] = COLUMNS
    try:
        return "\n".join(f"## `kalavai-nb {name}`\n\n{fenced(own.format_help(), 'text')}" for name, own in verbs())
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


def verbs() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The verbs of ``kalavai-nb``, in the order of its help."""
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def snapshot_fields() -> str:
    """Each noun of a snapshot: what it is, and its fields with their types."""
    nouns: list[tuple[str, type, tuple[str, ...]]] = [
        ("machines", reading.Machine, ("id",)),
        ("devices", state.Device, snapshot.NOT_FOR_SHOW),
        ("devices[…].reading", reading.Reading, ()),
        ("devices[…].reading.processes[…]", reading.Process, ()),
        ("devices[…].history", snapshot.History, ()),
        ("leases", state.Lease, ("id",)),
        ("queue", state.Waiting, ("id",)),
        ("cells", snapshot.Cell, ("id",)),
        ("sweeps", snapshot.SweepState, ("id",)),
        ("models", snapshot.ModelState, ("id",)),
        ("events[…]", snapshot.Event, ()),
        ("alerts", snapshot.Alert, ("key",)),
    ]
    return "\n".join(_noun(*noun) for noun in nouns)


def _noun(path: str, noun: type, left_out: tuple[str, ...]) -> str:
    fields = [field for field in dataclasses.fields(noun) if field.name not in left_out]
    rows = [f"| `{field.name}` | {_kind(typing.get_type_hints(noun)[field.name])} |" for field in fields]
    said = inspect.cleandoc(noun.__doc__ or "").replace("``", "`")
    return "\n".join([f"## `{path}`", "", said, "", "| field | type |", "|---|---|", *rows, ""])


def _kind(hint: Any) -> str:
    """What JSON has for a type of Python's."""
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if hint in plain:
        return plain[hint]
    parts = typing.get_args(hint)
    if type(None) in parts:
        return " or ".join(_kind(part) for part in parts if part is not type(None)) + ", where known"
    if typing.get_origin(hint) is tuple:
        return f"list of {_kind(parts[0])}"
    if typing.get_origin(hint) is dict:
        return f"object of {_kind(parts[1])} by {_kind(parts[0])}"
    return f"`{getattr(hint, '__name__', hint)}`"
