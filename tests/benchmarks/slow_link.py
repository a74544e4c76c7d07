"""A link that is slow: bytes arrive late, and no faster than so many bits a second. For what crosses between stages.

``python -m tests.benchmarks.slow_link HOST:PORT DELAY_SECONDS BITS_PER_SECOND`` prints the port to call instead.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK_BYTES = 1 << 13


@contextmanager
def slow_links(delay_seconds: float, bits_per_second: float) -> Iterator[None]:
    """Stages of models that are loaded inside call each other over such links."""
    from kalavai_nb.lm.member import Member
    from kalavai_nb.lm.routes import Routes

    links: dict[int, tuple[subprocess.Popen[str], int]] = {}
    plain = Routes.between

    def between(routes: Routes, source: Member, target: Member) -> tuple[list[tuple[str, int]], str]:
        [(host, port)], key = plain(routes, source, target)
        if port not in links:
            words = [f"{host}:{port}", str(delay_seconds), str(bits_per_second)]
            link = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.slow_link", *words], stdout=subprocess.PIPE, text=True
            )
            assert link.stdout
            links[port] = (link, int(link.stdout.readline()))
        return [(host, links[port][1])], key

    Routes.between = between  # type: ignore[method-assign]
    try:
        yield
    finally:
        Routes.between = plain  # type: ignore[method-assign]
        for link, _ in links.values():
            link.kill()
            link.wait()


def main() -> None:
    """Pass on every connection, both ways."""
    target, delay_seconds, bits_per_second = sys.argv[1:]
    host, _, port = target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            caller, _ = listener.accept()
            called = socket.create_connection((host, int(port)))
            for connection in (caller, called):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for a, b in ((caller, called), (called, caller)):
                arguments = (a, b, float(delay_seconds), float(bits_per_second))
                threading.Thread(target=_carry, args=arguments, daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, delay_seconds: float, bits_per_second: float) -> None:
    # what a link holds on its way, and some more that waits before it
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(4096)
    threading.Thread(target=_deliver, args=(under_way, target), daemon=True).start()
    free_at = 0.0
    while chunk := source.recv(CHUNK_BYTES):
        free_at = max(free_at, time.monotonic()) + 8 * len(chunk) / bits_per_second
        under_way.put((free_at + delay_seconds, chunk))
    under_way.put((0.0, b""))


def _deliver(under_way: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            at, chunk = under_way.get()
            if not chunk:
                target.shutdown(socket.SHUT_WR)
                return
            if (wait := at - time.monotonic()) > 0:
                time.sleep(wait)
            target.sendall(chunk)


if __name__ == "__main__":
    main()
