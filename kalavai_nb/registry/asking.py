"""Orders from the server's side: put into an owner's inbox, answered there, and taken back when nobody answers."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalavai_nb.registry.entry import MOST_REPLY_CHARACTERS
from kalavai_nb.registry.folder import Folder

MOST_REPLY_BYTES = 8 * MOST_REPLY_CHARACTERS
VERBS = ("stop_sweep", "stop_cell", "close_model", "release", "invite")


@dataclass(frozen=True)
class Reply:
    """What became of an order: whether it was done, and a sentence, or what was asked for."""

    ok: bool
    text: str


def ask(path: Path, name: str, verb: str, target: str) -> str:
    """Give an order to the owner of the entry ``name``; returns the id of the order.

    Raises OSError where the owner has no inbox of its own, or it cannot be written to.
    """
    id = secrets.token_hex(8)
    content = json.dumps({"id": id, "verb": verb, "target": target}).encode()
    with Folder(path) as folder, folder.inner(f"{name}.inbox") as inbox:
        inbox.write(f"{id}.json", content)
    return id


def take_reply(path: Path, name: str, id: str) -> Reply | None:
    """What the owner answered to this order, which is gone then; None where there is nothing yet."""
    file = f"{id}.reply"
    try:
        with Folder(path) as folder, folder.inner(f"{name}.inbox") as inbox:
            try:
                content: Any = json.loads(inbox.read(file, MOST_REPLY_BYTES)[0])
            except FileNotFoundError:
                return None
            except (OSError, ValueError, RecursionError):
                content = None
            inbox.remove(file)
    except FileNotFoundError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        return Reply(False, "the notebook gave an answer that cannot be read.")
    return Reply(content.get("ok") is True, content["text"][:MOST_REPLY_CHARACTERS])


def take_back(path: Path, name: str, id: str) -> bool:
    """Withdraw an order; false where the owner has taken it already, so that it may still do it."""
    try:
        with Folder(path) as folder, folder.inner(f"{name}.inbox") as inbox:
            return inbox.remove(f"{id}.json")
    except OSError:
        return False
