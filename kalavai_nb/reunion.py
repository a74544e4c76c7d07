"""A connection to a head that is made again after it was lost: the head was started anew, or this machine slept.

The ledger has ended what the owner held by then, so the owner comes back as a stranger that still knows what it wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

PAUSE_SECONDS = 0.5
CONNECT_SECONDS = 10.0
# the connections of all our clients
_ours: weakref.WeakSet[Any] = weakref.WeakSet()


class Reunion:
    """What is needed to come back. ``on_loss`` and ``on_return`` are called on Dask's thread.

    ``open_requests`` are those without an answer, ``workers`` those that were told something: what they had is lost.
    """

    def __init__(
        self, patience_seconds: float, on_loss: Callable[[], None], on_return: Callable[[], Awaitable[None]]
    ) -> None:
        self.patience_seconds, self._on_loss, self._on_return = patience_seconds, on_loss, on_return
        self.open_requests: dict[str, dict[str, Any]] = {}
        self.workers: set[str] = set()
        self._here = threading.Event()
        self._here.set()
        self._ended = ""

    def give_up(self, why: str) -> None:
        """Try no more, now or later. May be called on any thread."""
        self._ended = why.rstrip(".")

    @property
    def reason(self) -> str:
        """Why there is no way back, as far as that is known."""
        return self._ended or "it was closed, or its head has ended"

    @property
    def is_trying(self) -> bool:
        """Whether there is no connection, and one is tried for."""
        return not self._here.is_set()

    def wait(self, timeout_seconds: float | None) -> None:
        """Until there is a connection, or none will be any more, or that time is over."""
        self._here.wait(timeout_seconds)

    def take_workers(self) -> list[str]:
        """The workers that were told something, once."""
        workers, self.workers = sorted(self.workers), set()
        return workers

    def client_class(self, base: Any) -> Any:
        """Dask's client with this way of coming back, instead of its own, which tells nobody."""
        from distributed.comm import CommClosedError

        reunion = self
        logging.getLogger("distributed.batched").addFilter(_is_for_others)

        class Client(base):
            async def _ensure_connected(self, timeout: Any = None) -> None:
                await super()._ensure_connected(timeout=timeout)
                if self.scheduler_comm is not None:
                    _ours.add(self.scheduler_comm.comm)

            async def _reconnect(self) -> None:
                await reunion.reconnect(self)

            def _send_to_scheduler_safe(self, message: Any) -> None:
                # lost between the end of the connection and its discovery, as what was told a moment earlier
                with contextlib.suppress(CommClosedError):
                    super()._send_to_scheduler_safe(message)

        return Client

    async def reconnect(self, client: Any) -> None:
        """On Dask's thread, while nothing that the head says is heard."""
        client.status, client.scheduler_comm = "connecting", None
        deadline = time.monotonic() + self.patience_seconds
        if self.patience_seconds and not self._ended:
            self._here.clear()
            self._on_loss()
        try:
            while client.status == "connecting" and time.monotonic() < deadline and not self._ended:
                try:
                    # said to a head that knew this owner: the one that is found now does not
                    client._pending_msg_buffer.clear()
                    await client._ensure_connected(timeout=CONNECT_SECONDS)
                    await self._on_return()
                    return
                # tornado raises ValueError where the other side closed between TCP's beginning and that of TLS
                except (OSError, TimeoutError, ValueError):
                    if client.status == "running":
                        client.status = "connecting"
                    await asyncio.sleep(PAUSE_SECONDS)
            await client._close(fast=True)
        finally:
            self._here.set()


def _is_for_others(record: logging.LogRecord) -> bool:
    """That a connection of ours is lost is for us to say: Dask does so with a traceback, on the notebook's screen."""
    about = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return record.levelno >= logging.ERROR or not any(about is comm for comm in _ours)


def import_dask() -> None:
    """Do now, while something else is waited for, what the first client would do."""
    import distributed  # noqa: F401


def hang_up(client: Any) -> None:
    """Close Dask's client, without a word."""
    from distributed.utils import silence_logging_cmgr

    # of a head that is gone, it says what it tried to connect to, with a traceback
    with contextlib.suppress(Exception), silence_logging_cmgr(logging.CRITICAL, root="distributed.client"):
        client.close(timeout=5)
