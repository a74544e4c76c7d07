"""Whole messages between a worker and the process of its trials: dicts of plain values and bytes, over a socket pair.

The worker reads what users' code may have had its hands on, so messages are msgpack, which builds nothing but data.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from select import select
from typing import Any

import msgpack

Message = dict[str, Any]

READ_BYTES = 1 << 16
# a message holds at most one small value, or one config
MAX_BYTES = 1 << 27


class Wire:
    """The child's end. It may be used from several threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        with self._sending:
            self._socket.sendall(msgpack.packb(message))

    def receive(self, timeout_seconds: float | None = None) -> Message | None:
        """The next message; None at the end of the conversation, or where none comes in time."""
        while True:
            for message in self._unpacker:
                return message  # type: ignore[no-any-return]
            if timeout_seconds is not None and not select([self._socket], [], [], timeout_seconds)[0]:
                return None
            if not (read := self._socket.recv(READ_BYTES)):
                return None
            self._unpacker.feed(read)


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """The worker's end: what the child says, until it says no more."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
    while True:
        try:
            read = await reader.read(READ_BYTES)
        except ConnectionError:
            return
        if not read:
            return
        unpacker.feed(read)
        for message in unpacker:
            yield message


def packed(message: Message) -> bytes:
    """A message for the worker to write."""
    content: bytes = msgpack.packb(message)
    return content
