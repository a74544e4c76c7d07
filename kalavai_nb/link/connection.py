"""The connection to a gate, kept up: it comes back by itself, and the certificate is renewed while it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import asyncssh

from kalavai_nb.errors import KalavaiError, NotWelcome, PoolClosed
from kalavai_nb.gate.keys import HEAD, ssh_key
from kalavai_nb.link.dial import ask, dial, hang_up
from kalavai_nb.link.membership import Membership
from kalavai_nb.security import MEMBER_SECONDS, public_pem

LOOPBACK = "127.0.0.1"
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_RENEW_SECONDS = MEMBER_SECONDS / 8


class Link:
    """One member's connection. ``on_state`` hears "up", "down", "renewed" and "refused", each with a sentence.

    ``head_port`` and ``proxy_port`` are ports of this machine's loopback, the same for as long as the link lives: the
    first leads to the head, the second is a SOCKS5 proxy to the ports that others have exposed.
    """

    def __init__(self, membership: Membership, on_state: Callable[[str, str], None] = lambda state, why: None) -> None:
        self.membership = membership
        self.on_state = on_state
        self.head_port = self.proxy_port = 0
        # port of this machine: port of the gate's that leads to it
        self.exposed: dict[int, int] = {}
        self._listeners: dict[int, asyncssh.SSHListener] = {}
        self.is_up = False
        self.is_welcome = True
        # why there is no connection at this moment
        self.why = ""
        self._connection: asyncssh.SSHClientConnection | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Connect, and keep connected. Raises NotWelcome or PoolClosed where the first time fails."""
        await self._connect()
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._keeping:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None
        if self._connection:
            await hang_up(self._connection)
            self._connection = None
        self._set(False, "was closed")

    async def wait_up(self) -> None:
        """Until there is a connection. Raises NotWelcome where there never will be one again."""
        while not self.is_up:
            if not self.is_welcome:
                raise NotWelcome(self.why)
            self._changed.clear()
            await self._changed.wait()

    async def wait_down(self) -> str:
        """Until the connection is lost, or the link closed; returns why."""
        while self.is_up:
            self._changed.clear()
            await self._changed.wait()
        return self.why

    async def expose(self, port: int) -> int:
        """Let others reach this port of this machine's loopback; returns the gate's port that leads here.

        It has another number after the connection was lost: ``exposed`` has the one of now.
        """
        if port not in self.exposed:
            await self._expose(self._there(), port)
        return self.exposed[port]

    async def hide(self, port: int) -> None:
        """Expose this port no more."""
        self.exposed.pop(port, None)
        if (listener := self._listeners.pop(port, None)) and self.is_up:
            listener.close()

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """What the gate answers. Raises PoolClosed without a connection, KalavaiError where it will not."""
        return await ask(self._there(), command, **fields)

    async def renew(self) -> None:
        """Get a new certificate for the same key, and keep it."""
        reply = await self.ask("renew", public_key=public_pem(self.membership.identity.key))
        self.membership = self.membership.renewed(reply).save()
        self.on_state("renewed", "")

    # inside

    def _there(self) -> asyncssh.SSHClientConnection:
        if self._connection is None or not self.is_up:
            raise PoolClosed(f"there is no connection to the pool at this moment ({self.why or 'not yet'}).")
        return self._connection

    async def _connect(self) -> None:
        member = self.membership
        key = ssh_key(member.identity.key)
        connection, _ = await dial(member.addresses, member.gate, member.member, key)
        try:
            head = await connection.forward_local_port(LOOPBACK, self.head_port, HEAD, 1)
            proxy = await connection.forward_socks(LOOPBACK, self.proxy_port)
            self.head_port, self.proxy_port = head.get_port(), proxy.get_port()
            for port in list(self.exposed):
                await self._expose(connection, port)
        except (OSError, asyncssh.Error) as error:
            connection.abort()
            raise PoolClosed(f"the connection to the pool cannot be used ({error})") from None
        self._connection = connection
        self._set(True, "")

    async def _expose(self, connection: asyncssh.SSHClientConnection, port: int) -> None:
        try:
            listener = await connection.forward_remote_port(LOOPBACK, 0, LOOPBACK, port)
        except (asyncssh.Error, asyncssh.ChannelListenError) as error:
            raise PoolClosed(f"the pool's gate opens no port for this machine ({error})") from None
        self.exposed[port], self._listeners[port] = listener.get_port(), listener

    async def _keep(self) -> None:
        renewing = asyncio.create_task(self._keep_renewed())
        try:
            while True:
                assert self._connection
                await self._connection.wait_closed()
                self._set(False, "the connection to the pool's gate was lost")
                if not await self._reconnect():
                    return
        finally:
            renewing.cancel()

    async def _reconnect(self) -> bool:
        """Try until it is there again; False where the pool refuses."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                await self._connect()
                return True
            except NotWelcome as refused:
                self.why, self.is_welcome = str(refused), False
                self.on_state("refused", self.why)
                self._changed.set()
                return False
            except KalavaiError as error:
                self.why = str(error)

    async def _keep_renewed(self) -> None:
        """At once, since what is kept may be old, and then from time to time."""
        while True:
            try:
                await self.wait_up()
                await self.renew()
            except NotWelcome:
                return
            except (KalavaiError, OSError):
                # not now: the next connection is another chance
                await asyncio.sleep(_LONGEST_PAUSE_SECONDS)
                continue
            await asyncio.sleep(_RENEW_SECONDS)

    def _set(self, is_up: bool, why: str) -> None:
        if is_up == self.is_up:
            return
        self.is_up, self.why = is_up, why
        self._changed.set()
        self.on_state("up" if is_up else "down", why)
