"""What `ShardedLM.serve` gives: a server in the notebook's process, on a thread of its own."""

from __future__ import annotations

import asyncio
import html
import ipaddress
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Any

from kalavai_nb.announce import say
from kalavai_nb.errors import MissingExtra, OptionError

if TYPE_CHECKING:
    from kalavai_nb.lm.serve.served import Served

BACKLOG = 128
# what is under way is ended first, so this is for clients that do not read
CLOSE_SECONDS = 2
# longer than clients keep connections, so that none is closed under a request
KEEP_ALIVE_SECONDS = 75
EVERYWHERE = ("0.0.0.0", "::")


class ModelServer:
    """A model behind OpenAI's API.

    Attributes
    ----------
    url : str
        What clients call ``base_url``; it ends in ``/v1``.
    key : str
        What they have to know, ``api_key``.
    name : str
        What they call the model.
    """

    def __init__(self, lm: Served, listener: socket.socket, url: str, key: str, name: str) -> None:
        self.url, self.key, self.name = url, key, name
        self._lm, self._listener = lm, listener
        self._closing = threading.Lock()
        self._server: Any = None
        self._endpoints: Any = None
        self._error: BaseException | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._live, name="kalavai-serve", daemon=True)

    def start(self) -> None:
        """Listen; returns when clients are answered. Raises what went wrong."""
        self._thread.start()
        self._up.wait()
        if self._error:
            raise self._error

    def close(self) -> None:
        """End what is being generated for clients, and stop to listen. The model stays. Idempotent."""
        with self._closing:
            if self._server is not None:
                self._endpoints.hang_up()
                self._server.should_exit = True
            self._thread.join()

    @property
    def is_closed(self) -> bool:
        return not self._thread.is_alive()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.is_closed:
            return f"<ModelServer {self.name}: closed>"
        return f"<ModelServer {self.name} at {self.url}, key {self._masked}>"

    def _repr_html_(self) -> str:
        if self.is_closed:
            return f"<div>{html.escape(self.name)}: this server is closed</div>"
        use = f'OpenAI(base_url="{self.url}", api_key=server.key)'
        return (
            f"<div><b>{html.escape(self.name)}</b> at <code>{html.escape(self.url)}</code>, "
            f"key <code>{html.escape(self._masked)}</code></div><div><code>{html.escape(use)}</code></div>"
        )

    @property
    def _masked(self) -> str:
        return f"{self.key[:6]}…" if len(self.key) > 16 else "…"

    # the server's thread

    def _live(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._listener.close()
            self._up.set()

    async def _serve(self) -> None:
        import uvicorn

        from kalavai_nb.lm.serve.app import Endpoints

        self._endpoints = Endpoints(self._lm, self.name, self.key)
        config = uvicorn.Config(
            self._endpoints.app(),
            access_log=False,
            log_config=None,
            log_level="error",
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        # the socket listens, so from here on clients wait for an answer instead of being refused
        asyncio.get_running_loop().call_soon(self._up.set)
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            self._endpoints.close()


def serve(lm: Served, port: int, host: str, key: str | None, name: str | None) -> ModelServer:
    """See `ShardedLM.serve`."""
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"serving a model needs a package that is not installed here ({error}); pip install 'kalavai-nb[serve]'"
        ) from None
    del starlette
    key = f"sk-kn-{secrets.token_urlsafe(24)}" if key is None else _checked_key(key)
    listener = _listen(host, port)
    server = ModelServer(lm, listener, _url(listener, host), key, name or lm.name)
    server.start()
    if not _is_loopback(host):
        say(
            f"{server.name} answers at {server.url} for every machine that reaches this one and has the key. What they "
            "say travels in the clear (HTTP): do this in networks that you trust, or behind a proxy with TLS."
        )
    return server


def _checked_key(key: Any) -> str:
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or not key or " " in key:
        raise OptionError(f"key= wants letters, digits and signs, or None to have one made; got {key!r:.8}.")
    return key


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OptionError."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 1 << 16:
        raise OptionError(f"port= wants a number from 0 (any that is free) to 65535; got {port!r}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise OptionError(f"host= wants a name or an address of this machine; got {host!r} ({error}).") from None
    # asyncio turns Nagle's delay, 40 ms an answer, off only for sockets that know their protocol
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OptionError(
            f"port {port} of {host} cannot be had: {error.strerror}. Give another port, or port=0 for any that is free."
        ) from None
    return listener


def _url(listener: socket.socket, host: str) -> str:
    port = listener.getsockname()[1]
    if host in EVERYWHERE:
        host = socket.gethostname()
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
