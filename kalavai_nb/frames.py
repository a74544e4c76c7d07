"""Frames: what stages say to each other, and to the notebook they belong to, over connections that stay open.

A frame is a head (msgpack: plain values only, no pickle) and a body (bytes, such as a tensor's), each with its length
before it. Every connection carries frames one way only: Python's TLS sockets may not be read and written at once from
two threads. So a notebook has two to each stage, one for its orders and one for news, and stages have one to the next.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from kalavai_nb.roads import DIRECT_SECONDS, Way, connect

Head = dict[str, Any]

PREFIX = struct.Struct("!IQ")
MAX_HEAD_BYTES = 1 << 26
MAX_BODY_BYTES = 1 << 32
# of a caller of whom nothing is known yet
HELLO_BYTES = 1 << 12
# memory that is taken before anything has come
READ_BYTES = 1 << 22
# what is smaller goes into the socket's buffer at once, without waiting for a thread
DIRECT_BYTES = 1 << 15
# frames that wait for a slow connection; whoever sends more has to wait, too
BACKLOG = 64


class FrameError(ConnectionError):
    """What came is no frame. The connection that it came from is of no more use."""


class Sender:
    """The writing end of a connection. A broken one is told of once, by ``on_broken``, and swallows what follows.

    Small frames are written at once, by whoever sends them, unless ``direct`` is False: then, like large ones, by a
    thread, so that nobody is held up by a peer that does not read.
    """

    def __init__(
        self, connection: socket.socket, on_broken: Callable[[], None] = lambda: None, *, direct: bool = True
    ) -> None:
        self._connection, self._on_broken, self._direct = connection, on_broken, direct
        self._broken = False
        self._backlog: deque[tuple[bytes, Any]] = deque()
        self._is_writing = False
        self._writer: threading.Thread | None = None
        # held while a frame is written directly, never while the thread writes
        self._turn = threading.Condition()

    def send(self, head: Head, body: Any = b"", *, wait: bool = True) -> None:
        """Send one frame; ``wait`` for room where many wait to be written."""
        packed: bytes = msgpack.packb(head)
        body_bytes = memoryview(body).nbytes
        start = PREFIX.pack(len(packed), body_bytes) + packed
        with self._turn:
            if self._broken:
                return
            is_free = not self._backlog and not self._is_writing
            if self._direct and is_free and len(start) + body_bytes <= DIRECT_BYTES:
                self._write(start + bytes(body), b"")
                return
            if wait:
                self._turn.wait_for(lambda: len(self._backlog) < BACKLOG or self._broken)
            self._backlog.append((start, body))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_on, name="kalavai-frames", daemon=True)
                self._writer.start()
            self._turn.notify_all()

    def close(self) -> None:
        """End the connection; what has not gone yet does not go."""
        self._broken = True
        # whoever writes now holds the turn until this
        hang_up(self._connection)
        with self._turn:
            self._backlog.clear()
            self._turn.notify_all()

    def _write(self, start: bytes, body: Any) -> None:
        if self._broken:
            return
        try:
            self._connection.sendall(start)
            if len(body):
                self._connection.sendall(body)
        except (OSError, ValueError):
            if not self._broken:
                self._broken = True
                self._on_broken()

    def _write_on(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._backlog or self._broken)
                if self._broken:
                    self._backlog.clear()
                    self._turn.notify_all()
                    return
                frame = self._backlog.popleft()
                self._is_writing = True
            self._write(*frame)
            with self._turn:
                self._is_writing = False
                self._turn.notify_all()


def receive(
    connection: socket.socket, most_head_bytes: int = MAX_HEAD_BYTES, most_body_bytes: int = MAX_BODY_BYTES
) -> tuple[Head, bytearray]:
    """The next frame. Raises ConnectionError at the end of the connection, and where what comes is no frame."""
    head_bytes, body_bytes = PREFIX.unpack(_exactly(connection, PREFIX.size))
    if head_bytes > most_head_bytes or body_bytes > most_body_bytes:
        raise FrameError(f"a frame of {head_bytes} + {body_bytes} bytes was announced")
    try:
        head = msgpack.unpackb(_exactly(connection, head_bytes), strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(f"the head of a frame cannot be read: {error}") from None
    if not isinstance(head, dict):
        raise FrameError("the head of a frame is no map")
    return head, _exactly(connection, body_bytes)


def dial(way: Way, context: ssl.SSLContext, hello: Head, timeout_seconds: float, proxy: int = 0) -> ssl.SSLSocket:
    """Open a connection over a way (see roads.py) and say who calls. Raises OSError."""
    plain = connect(way, proxy, timeout_seconds)
    try:
        connection = context.wrap_socket(quick(plain))
    except BaseException:
        plain.close()
        raise
    try:
        packed = msgpack.packb(hello)
        connection.sendall(PREFIX.pack(len(packed), 0) + packed)
        connection.settimeout(None)
    except BaseException:
        hang_up(connection)
        raise
    return connection


def dial_first(
    ways: Sequence[Way], context: ssl.SSLContext, hello: Head, timeout_seconds: float, proxy: int = 0
) -> ssl.SSLSocket:
    """`dial` by the first of these ways that can be gone; all but the last get little time. Raises OSError."""
    failed = []
    for number, way in enumerate(ways, start=1):
        patience = timeout_seconds if number == len(ways) else min(DIRECT_SECONDS, timeout_seconds)
        try:
            return dial(way, context, hello, patience, proxy)
        except OSError as error:
            failed.append(f"{way[0]}:{way[1]}: {error}")
    raise ConnectionError("; ".join(failed) or "there is no way there")


def hello(role: str, key: str, epoch: int = 0) -> Head:
    """How a caller says who it is: ``ring`` (the stage before), ``orders`` or ``news`` (its owner), or ``ping``."""
    return {"as": role, "key": key, "epoch": epoch}


def quick(connection: socket.socket) -> socket.socket:
    """Small frames leave at once, and a peer that has vanished without a word is noticed some day."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def hang_up(connection: socket.socket) -> None:
    """End a connection, also one that another thread is reading."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()


def _exactly(connection: socket.socket, count: int) -> bytearray:
    """So many bytes. Memory is taken as they come: what is announced may never be sent."""
    buffer, filled = bytearray(min(count, READ_BYTES)), 0
    while True:
        with memoryview(buffer) as view:
            while filled < len(buffer):
                filled += _read_into(connection, view[filled:])
        if filled == count:
            return buffer
        buffer.extend(bytes(min(filled, count - filled)))


def _read_into(connection: socket.socket, view: memoryview) -> int:
    with view:
        try:
            read = connection.recv_into(view)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"the connection has ended: {error}") from None
    if not read:
        raise ConnectionError("the connection has ended")
    return read
