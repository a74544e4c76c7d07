"""The process of one stage, seen from the notebook: how it is told things, and what it has said of itself."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from kalavai_nb.engine import Engine
from kalavai_nb.frames import Head, Sender, dial_first, hang_up, hello, receive
from kalavai_nb.roads import Post, Way, from_fields
from kalavai_nb.state import Device
from kalavai_nb.weights.source import ModelSource

DIAL_SECONDS = 5.0
CONTENT_BYTES = 4 << 20
VANISHED = "does not answer any more"

# what a ring hears: ("news", member's name, head) and ("gone", member's name, {})
Hear = Callable[[tuple[str, str, Head]], None]


class Member:
    """A process on a leased device. The thread of its ring calls everything here."""

    def __init__(self, engine: Engine, run: str, device: Device, lease: str) -> None:
        self._engine, self._run = engine, run
        self.device, self.lease = device, lease
        self.name = secrets.token_hex(6)
        self.key = secrets.token_hex(16)
        self.pid = 0
        # where its door is
        self.post = Post(device.machine, 0)
        # what it has, and what it was told to have
        self.layers: tuple[int, int] | None = None
        self.loading: tuple[int, int] | None = None
        self.memory: dict[str, int] = {}
        self.step_seconds: float | None = None
        self.seconds_per_layer: float | None = None
        self.free_bytes: int = device.memory_bytes
        self.reached: dict[str, float] | None = None
        self.epoch = 0
        self.progress: tuple[str, int, int] = ("start", 0, 1)
        self.pieces, self.is_busy = 0, False
        self.death = ""
        # whether its process has ended, so that its device is free
        self.is_gone = False
        self.last_heard = self.since = time.monotonic()
        self.pinged: float | None = None
        self._orders: Sender | None = None
        self._news: socket.socket | None = None

    @property
    def is_dead(self) -> bool:
        return bool(self.death)

    @property
    def is_ready(self) -> bool:
        """Whether it can be given layers."""
        return self._orders is not None and not self.death

    # telling it

    def start(self, instead_of: str = "") -> None:
        """Have its worker start the process, once the one of that name is gone. First it says ``started``."""
        message = {
            "op": "kn_stage",
            "owner": self._engine.owner,
            "run": self._run,
            "stage": self.name,
            "selectors": [self.device.selector],
            "key": self.key,
            "instead_of": instead_of,
        }
        self._engine.tell([(self.device.worker, message)])

    def order(self, order: str, **fields: Any) -> None:
        """An order, by way of its worker."""
        message = {"op": "kn_stage_order", "stage": self.name, "order": {"order": order, **fields}}
        self._engine.tell([(self.device.worker, message)])

    def ping(self) -> None:
        """Ask for a sign of life, both ways: the head may be stuck, and frames may be behind much else."""
        self.pinged = time.monotonic()
        self.order("ping")
        self.send({"kind": "ping"})

    def send(self, head: Head, body: Any = b"", *, wait: bool = False) -> None:
        """A frame, straight to it. Only a thread of its own may ``wait`` for room."""
        if self._orders:
            self._orders.send(head, body, wait=wait)

    def connect(self, ways: Sequence[Way], context: ssl.SSLContext, hear: Hear) -> None:
        """Open the two connections of an owner, by one of these ways. Raises OSError."""
        proxy = self._engine.proxy
        orders = dial_first(ways, context, hello("orders", self.key), DIAL_SECONDS, proxy)
        self._news = dial_first(ways, context, hello("news", self.key), DIAL_SECONDS, proxy)
        # the ring must not wait for a stage that stands still
        self._orders = Sender(orders, lambda: hear(("gone", self.name, {})), direct=False)
        threading.Thread(target=self._read, args=(self._news, hear), name="kalavai-news", daemon=True).start()

    def send_content(self, source: ModelSource, number: int, ranges: list[list[Any]]) -> None:
        """Send it these ranges of the model's files, as the answer to what it asked for, on a thread of its own."""
        arguments = (source, number, ranges)
        threading.Thread(target=self._send_content, args=arguments, name="kalavai-content", daemon=True).start()

    def end(self) -> None:
        """End the process. What it still says means nothing."""
        self.end_as("was closed")

    def end_as(self, why: str) -> None:
        """The same, for a reason."""
        self.die(why)
        message = {"op": "kn_stage_end", "stage": self.name}
        self._engine.tell([(self.device.worker, message)])

    def hang_up(self) -> None:
        if self._orders:
            self._orders.close()
        if self._news:
            hang_up(self._news)

    # hearing it

    def hear(self, said: dict[str, Any]) -> None:
        """Take note of what it says of itself."""
        self.last_heard, self.pinged = time.monotonic(), None
        kind = said["said"]
        if kind == "started":
            self.pid, self.post = said["pid"], from_fields(self.device.machine, said)
        elif kind == "probed":
            self.seconds_per_layer = said["seconds_per_layer"]
            self.free_bytes = said["free_bytes"] or self.device.memory_bytes
        elif kind == "reached":
            self.reached = said["seconds"]
        elif kind == "progress":
            self.progress = (said["phase"], said["done"], said["total"])
        elif kind == "loaded":
            self.layers, self.loading = (said["start"], said["end"]), None
        elif kind == "linked":
            self.epoch = said["epoch"]
        elif kind == "died":
            memory = ", because its machine ran out of memory" if said["out_of_memory"] else ""
            self.death = f"{said['how']}{memory}" if self.death in ("", VANISHED) else self.death
            self.is_gone = True
            self.hang_up()
        self.note(said)

    def note(self, facts: Head) -> None:
        """Figures that it tells along with something, or when it is asked whether it is there."""
        if "memory" in facts:
            self.memory = facts["memory"]
        if facts.get("step_seconds"):
            self.step_seconds = facts["step_seconds"]
        if "pieces" in facts:
            self.pieces, self.is_busy = facts["pieces"], facts["busy_seconds"] > 0

    def die(self, why: str) -> None:
        if not self.death:
            self.death = why
            self.hang_up()

    def __str__(self) -> str:
        return str(self.device)

    # inside, on threads of their own

    def _read(self, news: socket.socket, hear: Hear) -> None:
        try:
            while True:
                head, _ = receive(news)
                hear(("news", self.name, head))
        except ConnectionError:
            hear(("gone", self.name, {}))

    def _send_content(self, source: ModelSource, number: int, ranges: list[list[Any]]) -> None:
        head = {"kind": "content", "number": number}
        try:
            for file, offset, length in ranges:
                for start in range(offset, offset + length, CONTENT_BYTES):
                    if self.death:
                        return
                    piece = source.read(file, start, min(CONTENT_BYTES, offset + length - start))
                    self.send({**head, "file": file, "offset": start}, piece, wait=True)
        except Exception as error:  # it is the stage that waits for it, and tells
            self.send({**head, "error": str(error)})
