"""The plugin in each worker that helps the head to measure the ways between machines, and tells how this one is.

To measure one, the head has a worker of the target listen for a few seconds, and one of the source dial it: TLS with
the pool's certificates on both sides, and a nonce that only they know, since two machines may have the same address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import shutil
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

from kalavai_nb.frames import hang_up, quick
from kalavai_nb.identity import CurrentIdentity
from kalavai_nb.roads import DIRECT_SECONDS, Site, exactly, first_reached, listener
from kalavai_nb.worker.handlers import register

# how long a port is open for a machine that may dial it
LISTEN_SECONDS = 5.0
PATIENCE_SECONDS = 10.0
PINGS = 4
# of bytes, sent until one lot takes so long that its time says something, or until they are enough
LOTS_BYTES = (1 << 16, 1 << 18, 1 << 20, 1 << 22)
ENOUGH_SECONDS = 0.1
NONCE_CHARACTERS = 32
_PIECE = bytes(1 << 16)


class Roads(WorkerPlugin):
    """Listens, dials, and answers about this machine, when the head asks."""

    name = "kalavai-roads"

    def __init__(self, site: Site, identity: CurrentIdentity, directory: Path) -> None:
        self.site, self._identity, self._directory = site, identity, directory

    def setup(self, worker: Worker) -> None:
        register(self, worker)

    async def kn_listen(self, nonce: str) -> dict[str, Any]:
        """Listen for the caller with this nonce; where it may try."""
        if not (addresses := self.site.addresses()):
            return {"port": 0, "addresses": []}
        door = listener(self.site.door)
        door.settimeout(LISTEN_SECONDS)
        arguments = (door, self._identity.context(server=True), nonce)
        threading.Thread(target=_answer, args=arguments, name="kalavai-roads", daemon=True).start()
        return {"port": door.getsockname()[1], "addresses": addresses}

    async def kn_dial(self, nonce: str, port: int, addresses: list[str]) -> dict[str, Any]:
        """Dial a machine at these addresses; the one that leads there, with its figures. Empty where none does."""
        context = self._identity.context(server=False)
        return await asyncio.to_thread(_measure, nonce, port, addresses, context)

    async def kn_clock(self) -> float:
        """What time it is here. Asked for how long the answer takes, too."""
        return time.time()

    async def kn_condition(self) -> dict[str, Any]:
        """What `doctor` wants to know of this machine."""
        disk = await asyncio.to_thread(shutil.disk_usage, self._directory)
        return {
            "clock": time.time(),
            "free_bytes": disk.free,
            "scratch": str(self._directory.parent),
            "expires": _expires(self._identity.now.certificate),
        }


def _expires(certificate: str) -> float:
    """When this certificate is good no more."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.timestamp()


# the machine that is dialled, in a thread of its own


def _answer(door: socket.socket, context: ssl.SSLContext, nonce: str) -> None:
    """Whoever comes, until somebody has said the nonce, or the time is over."""
    until = time.monotonic() + LISTEN_SECONDS
    with contextlib.suppress(OSError), contextlib.closing(door):
        while (left := until - time.monotonic()) > 0:
            door.settimeout(left)
            caller, _ = door.accept()
            # addresses of one machine are dialled at once, and each of them may lead here
            arguments = (caller, context, nonce)
            threading.Thread(target=_serve, args=arguments, name="kalavai-roads", daemon=True).start()


def _serve(caller: socket.socket, context: ssl.SSLContext, nonce: str) -> None:
    connection = caller
    try:
        caller.settimeout(PATIENCE_SECONDS)
        connection = context.wrap_socket(quick(caller), server_side=True)
        if not hmac.compare_digest(exactly(connection, NONCE_CHARACTERS), nonce.encode()):
            return
        connection.sendall(b".")
        while size := int.from_bytes(exactly(connection, 4), "big"):
            if size > LOTS_BYTES[-1]:
                return
            _swallow(connection, size)
            connection.sendall(b".")
    except OSError:
        return
    finally:
        hang_up(connection)


# the machine that dials


def _measure(nonce: str, port: int, addresses: list[str], context: ssl.SSLContext) -> dict[str, Any]:
    def reach(address: str) -> ssl.SSLSocket:
        return _dial(address, port, nonce, context)

    found = first_reached(addresses, reach, DIRECT_SECONDS)
    try:
        for address, connection in found.items():
            with contextlib.suppress(OSError):
                connection.settimeout(PATIENCE_SECONDS)
                rtt = min(_lot(connection, 1) for _ in range(PINGS))
                return {"address": address, "rtt_seconds": rtt, "bytes_per_second": _rate(connection, rtt)}
        return {}
    finally:
        for connection in found.values():
            hang_up(connection)


def _dial(address: str, port: int, nonce: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((address, port), DIRECT_SECONDS)
    try:
        connection = context.wrap_socket(quick(plain))
    except BaseException:
        plain.close()
        raise
    try:
        connection.sendall(nonce.encode())
        exactly(connection, 1)
    except BaseException:
        hang_up(connection)
        raise
    return connection


def _rate(connection: socket.socket, rtt_seconds: float) -> float:
    """Bytes per second; on a slow way, little is sent."""
    rate = 0.0
    for size in LOTS_BYTES:
        seconds = _lot(connection, size)
        rate = size / max(seconds - rtt_seconds, seconds / 10)
        if seconds - rtt_seconds > ENOUGH_SECONDS:
            break
    connection.sendall(bytes(4))
    return rate


def _lot(connection: socket.socket, size: int) -> float:
    """How long it takes to send so much, until it is known there to have come."""
    started = time.perf_counter()
    head = size.to_bytes(4, "big")
    if size == 1:
        connection.sendall(head + b".")
    else:
        connection.sendall(head)
        for _ in range(size // len(_PIECE)):
            connection.sendall(_PIECE)
    exactly(connection, 1)
    return time.perf_counter() - started


def _swallow(connection: socket.socket, count: int) -> None:
    buffer = bytearray(len(_PIECE))
    while count > 0:
        if not (read := connection.recv_into(buffer, min(count, len(buffer)))):
            raise ConnectionError("it has hung up")
        count -= read
