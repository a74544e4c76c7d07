"""A connection to a gate that is the right one, by whichever of its addresses answers first."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import asyncssh

from kalavai_nb.errors import KalavaiError, NotWelcome, PoolClosed
from kalavai_nb.gate.keys import AGREED, fingerprint
from kalavai_nb.invites import split_address

CONNECT_SECONDS = 10.0
ASK_SECONDS = 30.0
# the next address is tried so soon, while those before it still may answer (RFC 8305)
_STAGGER_SECONDS = 0.25


class _Client(asyncssh.SSHClient):
    """Trusts a gate by its key alone, whatever its address and name."""

    def __init__(self, gate: str) -> None:
        self._gate = gate
        self.banner = ""
        self.is_gate = False

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.is_gate = fingerprint(key) == self._gate
        return self.is_gate

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.banner = msg.strip()


async def dial(
    addresses: Sequence[str], gate: str, username: str, key: asyncssh.SSHKey
) -> tuple[asyncssh.SSHClientConnection, str]:
    """A connection to the gate of this fingerprint, and the address that it was found at.

    Raises NotWelcome where the gate refuses this key, and PoolClosed where no gate of this fingerprint answers.
    """
    attempts = [
        asyncio.ensure_future(_attempt(address, gate, username, key, number * _STAGGER_SECONDS))
        for number, address in enumerate(addresses)
    ]
    failures: list[KalavaiError] = []
    chosen: tuple[asyncssh.SSHClientConnection, str] | None = None
    try:
        for done in asyncio.as_completed(attempts):
            try:
                chosen = await done
                return chosen
            except NotWelcome:
                raise
            except KalavaiError as error:
                failures.append(error)
    finally:
        for attempt in attempts:
            attempt.cancel()
        for late in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(late, tuple) and late is not chosen:
                late[0].abort()
    raise PoolClosed(
        f"the pool's gate does not answer: {'; '.join(map(str, failures))}. Does the pool run (kalavai-nb start), and "
        "may this machine reach that address and port?"
    )


async def _attempt(
    address: str, gate: str, username: str, key: asyncssh.SSHKey, after_seconds: float
) -> tuple[asyncssh.SSHClientConnection, str]:
    await asyncio.sleep(after_seconds)
    host, port = split_address(address)
    client = _Client(gate)
    try:
        connection = await asyncio.wait_for(
            asyncssh.connect(
                host,
                port,
                client_factory=lambda: client,
                username=username,
                client_keys=[key],
                # nothing is known beforehand: the client above is asked
                known_hosts=((), (), ()),
                agent_path=None,
                preferred_auth="publickey",
                login_timeout=CONNECT_SECONDS,
                **AGREED,
            ),
            CONNECT_SECONDS,
        )
    except asyncssh.PermissionDenied:
        if not client.is_gate:
            # said before any key was shown: whoever it is cannot speak for the pool
            raise PoolClosed(f"at {address} is something else than the gate of this pool") from None
        raise NotWelcome(
            f"the pool refuses: {client.banner}" if client.banner else "the pool does not know this invite or member."
        ) from None
    except asyncssh.HostKeyNotVerifiable:
        raise PoolClosed(f"at {address} is something else than the gate of this pool") from None
    except TimeoutError:
        raise PoolClosed(f"{address} did not answer within {CONNECT_SECONDS:.0f} s") from None
    except (OSError, asyncssh.Error) as error:
        raise PoolClosed(f"{address}: {error}") from None
    return connection, address


async def ask(connection: asyncssh.SSHClientConnection, command: str, **fields: Any) -> dict[str, Any]:
    """What the gate answers to a command. Raises KalavaiError with its sentence where it says that it will not."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            done = await connection.run(command, input=json.dumps(fields) + "\n")
        reply: Any = json.loads(str(done.stdout))
    except (OSError, ValueError, RecursionError, asyncssh.Error) as error:
        raise PoolClosed(f"the pool's gate did not answer {command!r} ({error or type(error).__name__})") from None
    if not isinstance(reply, dict):
        raise PoolClosed(f"the pool's gate answered {command!r} with something that cannot be read")
    if "error" in reply:
        raise KalavaiError(str(reply["error"]))
    return reply


async def hang_up(connection: asyncssh.SSHClientConnection) -> None:
    """End a connection in good order."""
    connection.close()
    with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
        await asyncio.wait_for(connection.wait_closed(), 2)
