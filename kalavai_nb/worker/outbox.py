"""What ranks and trials say, on its way to their owner: coalesced into a few numbered chunks a second.

An item is a list whose first element is its kind, as in Jupyter's own messages:
``["stream", name, text]``, ``["display", data, metadata, display_id]``, ``["update", …]``, ``["result", data,
metadata]``, ``["clear", wait]``. The last chunk of a rank carries ``end``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

PAUSE_SECONDS = 0.02
CHUNK_BYTES = 1 << 15
# what one rank may say in one cell; a rank that never stops printing must not fill the head or the notebook
LIMIT_BYTES = 16 << 20


class Outbox:
    """The chunks of one rank in one cell. ``send`` puts an event on the owner's topic."""

    def __init__(self, send: Callable[[dict[str, Any]], None], **header: Any) -> None:
        self._send = send
        self._header = header
        self._items: list[list[Any]] = []
        self._bytes = 0
        self._total_bytes = 0
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, item: list[Any]) -> None:
        """Queue one item. The first after a pause leaves at once, those that follow wait for each other."""
        size = len(item[2]) if item[0] == "stream" else len(str(item))
        if self._total_bytes > LIMIT_BYTES:
            return
        self._total_bytes += size
        if self._total_bytes > LIMIT_BYTES:
            self._items.append(["stream", "stderr", f"\n… output beyond {LIMIT_BYTES >> 20} MiB is not shown\n"])
        elif item[0] == "stream" and self._items and self._items[-1][:2] == item[:2]:
            self._items[-1][2] += item[2]
        else:
            self._items.append(item)
        self._bytes += size
        if self._bytes >= CHUNK_BYTES:
            self._flush()
        elif self._timer is None:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._on_timer)

    def end(self, end: dict[str, Any]) -> None:
        """Send what is left, and the end marker."""
        if self._timer:
            self._timer.cancel()
        self._flush(end)

    def _on_timer(self) -> None:
        self._timer = None
        if self._items:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._on_timer)

    def _flush(self, end: dict[str, Any] | None = None) -> None:
        event = {**self._header, "sequence": self._sequence, "items": self._items}
        self._send({**event, "end": end} if end is not None else event)
        self._items, self._bytes = [], 0
        self._sequence += 1
