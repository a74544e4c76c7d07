"""Who a member of a pool is: its certificate, and the pool's own authority to check those of others by."""

from __future__ import annotations

import hashlib
import json
import ssl
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """What one member needs to take part: the pool's CA, its own certificate and its key, as PEM text."""

    ca: str
    certificate: str
    key: str

    @property
    def pool_id(self) -> str:
        """What the pool is called among all pools: the same for all its members, as its authority is."""
        return hashlib.sha256(self.ca.encode()).hexdigest()[:12]

    def context(self, *, server: bool) -> ssl.SSLContext:
        """TLS for connections that are not Dask's. Both sides show a certificate of the pool, whatever its name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.ca)
        if server:
            # a side that only ever writes would never read them
            context.num_tickets = 0
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Show this certificate on connections that are made with ``context`` from now on."""
        # ssl reads keys from files only
        with tempfile.NamedTemporaryFile("w", prefix="kalavai-") as file:
            file.write(self.key + self.certificate)
            file.flush()
            context.load_cert_chain(file.name)


class CurrentIdentity:
    """An identity that is renewed while it is used: ``file`` has the one of now, once there is another. Thread-safe."""

    def __init__(self, identity: Identity, file: Path | None = None) -> None:
        self._identity, self._file = identity, file
        self._read_at = 0
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._lock = threading.Lock()

    @property
    def now(self) -> Identity:
        """What was written last; what cannot be read was not written."""
        with self._lock:
            self._look()
            return self._identity

    def context(self, *, server: bool) -> ssl.SSLContext:
        """As `Identity.context`, of now."""
        with self._lock:
            self._look()
            if server not in self._contexts:
                self._contexts[server] = self._identity.context(server=server)
            return self._contexts[server]

    def _look(self) -> None:
        if self._file is None:
            return
        try:
            written = self._file.stat().st_mtime_ns
            if written == self._read_at:
                return
            identity = Identity(**json.loads(self._file.read_text()))
        except (OSError, ValueError, TypeError):
            return
        self._read_at = written
        if identity != self._identity:
            self._identity = identity
            for context in self._contexts.values():
                identity.load_into(context)
