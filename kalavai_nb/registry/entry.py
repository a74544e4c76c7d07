"""What one owner of a pool makes known of it, and the inbox in which it is told what to do."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import socket
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalavai_nb.registry.folder import Folder
from kalavai_nb.registry.folder import directory as usual_directory
from kalavai_nb.state import machine_id

VERSION = 1
INTERVAL_SECONDS = 1.0
MOST_ORDER_BYTES = 4096
MOST_TARGET_CHARACTERS = 512
MOST_REPLY_CHARACTERS = 32_000
# a flood of files does not keep the owner from its work
ORDERS_AT_ONCE = 64
# whoever asked has long gone
REPLY_KEPT_SECONDS = 60.0

ORDER_FILE = re.compile(r"[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class Order:
    """What a person asks an owner to do, by a button: ``target`` is the id of a sweep, a cell, a model or a lease."""

    id: str
    verb: str
    target: str


class Entry:
    """The file and the inbox of one owner. Nothing is there before the first `write`, which one thread does.

    All but `remove` raise OSError where files cannot be read or written.
    """

    def __init__(self, pool_id: str, owner: str, label: str, can_invite: bool, directory: Path | None = None) -> None:
        self.name = f"{re.sub(r'[^A-Za-z0-9_]', '_', pool_id)[:64]}-{os.getpid()}-{secrets.token_hex(2)}"
        self._path = directory or usual_directory()
        self._pid, self._sequence = os.getpid(), 0
        self._always = {
            "version": VERSION,
            "interval_seconds": INTERVAL_SECONDS,
            "pid": self._pid,
            "host": socket.gethostname(),
            "machine": machine_id(),
            "owner": owner,
            "label": label,
            "can_invite": can_invite,
        }
        self._replied: deque[tuple[float, str]] = deque()

    def write(self, snapshot: dict[str, Any], link: str = "live", reason: str = "") -> None:
        """Make this known, in place of what was before. Makes the directory again where it was deleted."""
        if self._is_copy():
            return
        self._sequence += 1
        known = {**self._always, "sequence": self._sequence, "link": link, "reason": reason, "snapshot": snapshot}
        content = _json(known)
        with Folder.made(self._path) as folder:
            folder.inner_made(self._inbox).close()
            folder.write(f"{self.name}.json", content)

    def orders(self) -> list[Order]:
        """What came since, oldest first. Each is given once; what is no order of this user is deleted."""
        if self._is_copy():
            return []
        try:
            with Folder(self._path) as folder, folder.inner(self._inbox) as inbox:
                self._forget_replies(inbox)
                return [order for name in _waiting(inbox) if (order := _take(inbox, name))]
        except FileNotFoundError:
            return []

    def reply(self, order: Order, ok: bool, text: str) -> None:
        """Tell whoever gave the order how it went."""
        name = f"{order.id}.reply"
        with Folder(self._path) as folder, folder.inner(self._inbox) as inbox:
            inbox.write(name, _json({"ok": ok, "text": text[:MOST_REPLY_CHARACTERS]}))
        self._replied.append((time.monotonic(), name))

    def remove(self) -> None:
        """Take the file and the inbox away. Idempotent."""
        if not self._is_copy():
            with contextlib.suppress(OSError), Folder(self._path) as folder:
                remove_entry(folder, self.name)

    @property
    def _inbox(self) -> str:
        return f"{self.name}.inbox"

    def _is_copy(self) -> bool:
        """Whether this is a forked child of the notebook, which has this object but not the pool."""
        return os.getpid() != self._pid

    def _forget_replies(self, inbox: Folder) -> None:
        while self._replied and time.monotonic() - self._replied[0][0] > REPLY_KEPT_SECONDS:
            inbox.remove(self._replied.popleft()[1])


def remove_entry(folder: Folder, name: str) -> None:
    """Take an entry away, with what its owner may have been about to write."""
    folder.remove(f"{name}.json")
    folder.remove_inner(f"{name}.inbox")
    for each in folder.names():
        if each.startswith(f".{name}."):
            folder.remove(each)


def _waiting(inbox: Folder) -> list[str]:
    """Names of what may be orders, oldest first."""
    ages = []
    for name in inbox.names():
        if ORDER_FILE.fullmatch(name):
            try:
                ages.append((inbox.sign(name).mtime_ns, name))
            except OSError:
                inbox.remove(name)
        if len(ages) == ORDERS_AT_ONCE:
            break
    return [name for _, name in sorted(ages)]


def _take(inbox: Folder, name: str) -> Order | None:
    """The order in this file, which is gone then: whoever gave it may have taken it back before."""
    try:
        content: Any = json.loads(inbox.read(name, MOST_ORDER_BYTES)[0])
    except (OSError, ValueError, RecursionError):
        content = None
    if not inbox.remove(name) or not isinstance(content, dict):
        return None
    id, verb, target = (content.get(field) for field in ("id", "verb", "target"))
    if id != name.partition(".")[0] or not isinstance(verb, str) or not isinstance(target, str):
        return None
    return Order(id, verb, target) if len(target) <= MOST_TARGET_CHARACTERS else None


def _json(content: dict[str, Any]) -> bytes:
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:  # a number that is none, which JSON does not have
        return json.dumps(_finite(content), allow_nan=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    """The same without what is not known."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items() if not _is_no_number(each)}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value if not _is_no_number(each)]
    return value


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
