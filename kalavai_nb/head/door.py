"""Who may say what to a scheduler. Dask itself knows members, but no roles: every certificate of the pool is as good.

The role is what the certificate's name begins with. Somebody who was revoked is refused before a byte of what they say
is read; what a member says is read, and unpickled, before its operation is known (docs/security.md says what follows).
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable
from typing import Any

from distributed import Scheduler
from distributed.comm import CommClosedError
from distributed.comm.registry import backends
from distributed.comm.tcp import TLSBackend, TLSListener

logger = logging.getLogger(__name__)

# what a machine's worker has to say; runs of functions, tasks and leases are for users
WORKER_OPERATIONS = frozenset(
    {
        *("identity", "register-worker", "heartbeat_worker", "unregister", "ping", "log_event", "log-event", "close"),
        *("close-stream", "keep-alive", "worker-status-change", "release-worker-data", "missing-data", "reschedule"),
        *("add-keys", "long-running", "task-erred", "task-finished", "request-refresh-who-has"),
    }
)
WORKER_WORDS = ("kn_reading", "kn_drain", "kn_stay", "kn_limits", "kn_roads", "kn_device")
# this process looks each second (head/serve.py): with a gap of so long, it stood still itself
STOOD_SECONDS = 5.0
# and what workers have said meanwhile, or say now that their machine is awake again, is heard within this time
HEARING_SECONDS = 5.0
# what only a machine's worker may say
NOT_OF_USERS = frozenset({"register-worker", "heartbeat_worker", *WORKER_WORDS})


def peer_name(certificate: dict[str, Any] | None) -> str:
    """The name on a peer's certificate, as ``getpeercert`` gives it: ``role:id``, or ``head``."""
    subject = (certificate or {}).get("subject", ())
    return next((value for pairs in subject for key, value in pairs if key == "commonName"), "")


class Door:
    """Names that are not let in any more, and the connections that are there."""

    def __init__(self, denied: Iterable[str] = ()) -> None:
        self.denied = set(denied)
        self._comms: weakref.WeakSet[Any] = weakref.WeakSet()

    def deny(self, names: Iterable[str]) -> None:
        """Refuse these from now on, and end the connections that they have."""
        self.denied |= set(names)
        for comm in list(self._comms):
            if comm.name_of_peer in self.denied:
                comm.abort()

    def hang(self) -> None:
        """Stand at every listener that this process opens from now on."""
        door = self

        class Listener(TLSListener):
            async def _prepare_stream(self, stream: Any, address: str) -> Any:
                # after the handshake of TLS, before anything is read
                stream = await super()._prepare_stream(stream, address)
                if stream is not None and (name := peer_name(stream.socket.getpeercert())) in door.denied:
                    logger.warning("refused %s: %s was revoked", address, name)
                    stream.close()
                    return None
                return stream

        class Backend(TLSBackend):
            _listener_class = Listener

        backends["tls"] = Backend()

    def watch(self, comm: Any) -> Any:
        """The same connection, on which a peer can say only what is for its role."""
        guarded = GuardedComm(comm)
        self._comms.add(guarded)
        return guarded


class GuardedComm:
    """A connection of Dask's that ends where its peer says what is not for its role."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.name_of_peer = peer_name(comm.extra_info.get("peercert"))
        self._role = self.name_of_peer.partition(":")[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    async def read(self, *arguments: Any, **options: Any) -> Any:
        """The next message. Raises CommClosedError for one that is not for this peer to say."""
        said = await self._comm.read(*arguments, **options)
        for message in said if isinstance(said, list | tuple) else (said,):
            operation = message.get("op") if isinstance(message, dict) else None
            if operation is not None and not self._may(str(operation)):
                logger.warning("refused %r of %s: that is not for its role", operation, self.name_of_peer)
                self._comm.abort()
                raise CommClosedError(f"{operation!r} is not for {self.name_of_peer}")
        return said

    def _may(self, operation: str) -> bool:
        if self._role == "worker":
            return operation in WORKER_OPERATIONS or operation in WORKER_WORDS
        return self._role != "user" or operation not in NOT_OF_USERS


class GuardedScheduler(Scheduler):
    """Dask's scheduler behind a door, which takes no worker for gone because it slept itself."""

    door = Door()
    _looked_at = _awake_at = 0.0

    def handle_comm(self, comm: Any) -> Any:
        return super().handle_comm(self.door.watch(comm))

    async def check_worker_ttl(self) -> None:
        """End the connections of workers that were silent for too long, where this process could have heard them."""
        now = time.time()
        if now - self._looked_at > STOOD_SECONDS:
            self._awake_at = now
        self._looked_at = now
        if now - self._awake_at >= HEARING_SECONDS:
            await super().check_worker_ttl()
