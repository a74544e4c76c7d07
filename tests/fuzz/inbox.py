"""The runtime directory, of which anything may be written: orders in an inbox, answers, entries of pools, requests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kalavai_nb.registry.asking import MOST_REPLY_BYTES, VERBS, take_reply
from kalavai_nb.registry.entry import MOST_ORDER_BYTES, MOST_REPLY_CHARACTERS, MOST_TARGET_CHARACTERS, Entry, Order
from kalavai_nb.registry.forms import MOST_KEY_CHARACTERS
from kalavai_nb.registry.published import parse
from kalavai_nb.registry.reader import MOST_FILE_BYTES

from .mutation import Mutator

SNAPSHOT: dict[str, Any] = {
    "version": 1,
    "id": "0123456789ab",
    "pool": "lab",
    "time": 1.7e9,
    "machines": {"m1": {"host": "box", "cores": 8, "memory_bytes": 1 << 34, "utilisation": 0.5}},
    "devices": {
        "d1": {
            "index": 0,
            "kind": "cuda",
            "name": "RTX 3060",
            "host": "box",
            "machine": "m1",
            "memory_bytes": 12 << 30,
            "reading": {"memory_used_bytes": 5, "utilisation": 0.1, "processes": [{"pid": 4, "name": "python"}]},
            "history": {"utilisation": [1, 2, -1], "memory": [0, 100]},
        }
    },
    "leases": {
        "l1": {
            "owner": "o1",
            "label": "ada",
            "kind": "sweep",
            "devices": ["d1"],
            "share": 1,
            "running": True,
            "since": 1.0,
        }
    },
    "queue": {"q1": {"owner": "o1", "label": "ada", "count": 2, "since": 1.5, "reason": "all are held"}},
    "owners": {"o1": {"label": "ada"}},
    "cells": {"c1": {"owner": "o1", "number": 1, "text": "x=1", "ranks": 2, "devices": ["d1"], "since": 1}},
    "sweeps": {
        "s1": {
            "owner": "o1",
            "name": "s",
            "fn": "f",
            "state": "running",
            "counts": {"DONE": 3},
            "total": 9,
            "since": 1.0,
            "best": "0.1",
            "eta_seconds": 5,
        }
    },
    "models": {"m": {"owner": "o1", "name": "n", "state": "running", "stages": [{"device": "d1", "layers": [0, 4]}]}},
    "events": [{"time": 1.0, "kind": "lost", "text": "gone"}],
    "alerts": {"a": {"kind": "hot", "text": "90 degrees", "device": "d1"}},
}
ENTRY: dict[str, Any] = {
    "version": 1,
    "interval_seconds": 1.0,
    "sequence": 7,
    "pid": 4711,
    "host": "box",
    "machine": "m1",
    "owner": "o1",
    "label": "ada",
    "link": "live",
    "reason": "",
    "can_invite": True,
    "snapshot": SNAPSHOT,
}
NAMES = ("0123456789abcdef.json", "fedcba9876543210.json", "00000000000000aa.json")
# files are taken so many at once
AT_ONCE = 16


class Scratch:
    """A directory in memory where there is one."""

    def __init__(self) -> None:
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.path = Path(tempfile.mkdtemp(prefix="kalavai-fuzz-", dir=place))

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Inbox:
    """Orders as files, found by the owner they are for."""

    name = "inbox"

    def __init__(self, path: Path) -> None:
        self.entry = Entry("0123456789ab", "o1", "ada", True, path / "kalavai_nb")
        self.entry.write({"version": 1})
        self.inbox = path / "kalavai_nb" / f"{self.entry.name}.inbox"
        self.waiting = 0

    def make(self, mutator: Mutator) -> tuple[str, bytes, bool]:
        name = mutator.choose(NAMES)
        order = {"id": name[:16], "verb": mutator.choose(VERBS), "target": "s-1234"}
        if mutator.happens(0.5):
            content = json.dumps(mutator.value(order)).encode("utf-8", "surrogatepass")
        else:
            content = mutator.bytes([json.dumps(order).encode()])
        if mutator.happens(0.02):
            content *= 200
        if mutator.happens(0.05):
            name = mutator.text(NAMES).replace("/", "").replace("\0", "")[:60] or "x"
            name = name.encode("utf-8", "replace").decode()
        return name if name not in (".", "..") else "x", content, mutator.happens(1 / AT_ONCE)

    def take(self, given: tuple[str, bytes, bool]) -> str:
        name, content, now = given
        # as whoever can write there would: with no care
        fd = os.open(self.inbox / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, content)
        os.close(fd)
        self.waiting += 1
        if not now and self.waiting < AT_ONCE:
            return "left"
        self.waiting = 0
        orders = self.entry.orders()
        for order in orders:
            self._check(order)
            self.entry.reply(order, True, "done")
            os.unlink(self.inbox / f"{order.id}.reply")
        left = [each for each in os.listdir(self.inbox) if len(each) == 21 and each in NAMES]
        assert not left, f"{left} would be looked at again for ever"
        for each in os.listdir(self.inbox):
            os.unlink(self.inbox / each)
        return "orders" if orders else "nothing"

    def _check(self, order: Order) -> None:
        assert f"{order.id}.json" in NAMES
        assert isinstance(order.verb, str)
        assert len(order.verb) <= MOST_ORDER_BYTES
        assert isinstance(order.target, str)
        assert len(order.target) <= MOST_TARGET_CHARACTERS


class Replies:
    """What the server reads of an owner: answers to orders."""

    name = "replies"

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path / "kalavai_nb", "a-1-0000"
        (self.path / f"{self.owner}.inbox").mkdir(parents=True, mode=0o700)
        self.path.chmod(0o700)
        self.file = self.path / f"{self.owner}.inbox" / "0123456789abcdef.reply"

    def make(self, mutator: Mutator) -> bytes:
        reply = {"ok": True, "text": "stopped"}
        if mutator.happens(0.5):
            return json.dumps(mutator.value(reply)).encode("utf-8", "surrogatepass")
        made = mutator.bytes([json.dumps(reply).encode()])
        return made * (1 + MOST_REPLY_BYTES // max(len(made), 1)) if mutator.happens(0.0005) else made

    def take(self, given: bytes) -> str:
        fd = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, given)
        os.close(fd)
        reply = take_reply(self.path, self.owner, "0123456789abcdef")
        assert reply is not None
        assert isinstance(reply.ok, bool)
        assert len(reply.text) <= MOST_REPLY_CHARACTERS
        return "done" if reply.ok else "not done"


class Entries:
    """What the server reads of an owner: what it sees of its pool."""

    name = "entries"

    def __init__(self) -> None:
        self.valid = [json.dumps(ENTRY).encode()]

    def make(self, mutator: Mutator) -> bytes:
        if mutator.happens(0.7):
            # what is larger is never read
            return json.dumps(mutator.value(ENTRY)).encode("utf-8", "surrogatepass")[:MOST_FILE_BYTES]
        return mutator.bytes(self.valid)

    def take(self, given: bytes) -> str:
        try:
            published = parse(given)
        except ValueError:
            return "refused"
        # a browser reads it: no NaN, nothing infinite
        content = json.dumps(published.snapshot, allow_nan=False)
        assert len(content) <= 4 * len(given) + 4096
        assert 0 < len(published.owner) <= MOST_KEY_CHARACTERS
        assert published.time <= 2.0**53
        return "shown"


@contextlib.contextmanager
def inbox() -> Iterator[Inbox]:
    with contextlib.closing(Scratch()) as scratch:
        yield Inbox(scratch.path)


@contextlib.contextmanager
def replies() -> Iterator[Replies]:
    with contextlib.closing(Scratch()) as scratch:
        yield Replies(scratch.path)


@contextlib.contextmanager
def entries() -> Iterator[Entries]:
    yield Entries()
