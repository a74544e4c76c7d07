"""Where a stage is called: by the stage before it, by the notebook it belongs to, and by stages that time the way here.

TLS tells members of the pool from strangers; the key, which the owner gave this stage and its neighbours, tells the
owner's from other members.
"""

from __future__ import annotations

import hmac
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence

from kalavai_nb.frames import HELLO_BYTES, Head, Sender, dial_first, hang_up, hello, quick, receive
from kalavai_nb.identity import CurrentIdentity
from kalavai_nb.roads import Way, listener

HELLO_SECONDS = 10.0
PINGS = 5

OnFrame = Callable[[Head, bytearray], None]


class Door:
    """Listens on a port of its own, on all interfaces where ``host`` is empty.

    ``on_frame`` gets what comes, on a thread for each caller.

    ``on_news`` gets the connection on which the owner wants to hear of tokens; ``on_end`` is told when the stage before
    has hung up, with the epoch in which it called.
    """

    def __init__(
        self,
        host: str,
        identity: CurrentIdentity,
        key: str,
        on_frame: OnFrame,
        on_news: Callable[[Sender], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._key, self._on_frame, self._on_news, self._on_end = key, on_frame, on_news, on_end
        self._identity = identity
        self._socket = listener(host)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, name="kalavai-door", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                # no descriptors are left at this moment: others hang up some day
                time.sleep(1)
                continue
            threading.Thread(target=self._answer, args=(caller,), name="kalavai-caller", daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        connection: socket.socket = caller
        role, epoch = "", 0
        try:
            caller.settimeout(HELLO_SECONDS)
            connection = self._identity.context(server=True).wrap_socket(quick(caller), server_side=True)
            said, _ = receive(connection, HELLO_BYTES, 0)
            role, epoch = self._known(said)
            connection.settimeout(None)
            self._serve(connection, role)
        except OSError:
            pass
        finally:
            if role != "news":
                hang_up(connection)
            if role == "ring":
                self._on_end(epoch)

    def _known(self, said: Head) -> tuple[str, int]:
        """Who calls, and in which epoch. Raises ConnectionError for what is no caller of this stage."""
        key, role, epoch = said.get("key"), said.get("as"), said.get("epoch")
        if not isinstance(key, str) or not hmac.compare_digest(key.encode(errors="replace"), self._key.encode()):
            raise ConnectionError("a caller without this stage's key")
        if role not in ("ring", "orders", "news", "ping") or not isinstance(epoch, int):
            raise ConnectionError("a caller that does not say who it is")
        return role, epoch

    def _serve(self, connection: socket.socket, role: str) -> None:
        if role == "news":
            self._on_news(Sender(connection))
        elif role == "ping":
            for _ in range(PINGS):
                connection.sendall(connection.recv(1))
        else:
            while True:
                self._on_frame(*receive(connection))


def round_trip_seconds(
    ways: Sequence[Way], context: ssl.SSLContext, key: str, proxy: int, patience_seconds: float = HELLO_SECONDS
) -> float:
    """The shortest time to a stage and back, on a connection that is open. Raises OSError."""
    connection = dial_first(ways, context, hello("ping", key), patience_seconds, proxy)
    try:
        connection.settimeout(patience_seconds)
        seconds = []
        for _ in range(PINGS):
            started = time.perf_counter()
            connection.sendall(b".")
            if not connection.recv(1):
                raise ConnectionError("it has hung up")
            seconds.append(time.perf_counter() - started)
        return min(seconds)
    finally:
        hang_up(connection)
