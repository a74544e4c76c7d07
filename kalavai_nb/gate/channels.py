"""The connections that one member has open through the gate, counted: each is a socket of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncssh

# of one member; a machine with eight devices, each with a stage of a model, has some fifty
MOST_CHANNELS = 1024


class Channels:
    """Those of one member. ``say`` hears that there were too many, when they begin to be."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._count = 0
        self._is_said = False

    async def forward(self, host: str, port: int) -> asyncssh.SSHForwarder:
        """What a connection through the gate is handed on to. Raises ChannelOpenError where it cannot be."""
        if self._count >= MOST_CHANNELS:
            if not self._is_said:
                self._is_said = True
                self._say(f"has {MOST_CHANNELS} connections open through the gate: it gets no more until some end")
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many connections are open")
        self._count += 1
        try:
            _, peer = await asyncio.get_running_loop().create_connection(asyncssh.SSHForwarder, host, port)
        except BaseException as error:
            self._end()
            if isinstance(error, OSError):
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(error)) from None
            raise
        return _Channel(peer, self._end)

    def _end(self) -> None:
        self._count -= 1
        self._is_said = self._is_said and self._count > MOST_CHANNELS // 2


class _Channel(asyncssh.SSHForwarder):
    """One of them, which says once that it has ended."""

    def __init__(self, peer: asyncssh.SSHForwarder, on_end: Callable[[], None]) -> None:
        super().__init__(peer)
        self._on_end: Callable[[], None] | None = on_end

    def close(self) -> None:
        if on_end := self._on_end:
            self._on_end = None
            on_end()
        super().close()
