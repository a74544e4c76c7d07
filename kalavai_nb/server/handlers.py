"""What browsers ask for, and who may: reading needs "read" on the resource "kalavai-nb", an order needs "execute"."""

from __future__ import annotations

import json
import re
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.websocket import WebSocketHandler

from kalavai_nb.server.ordering import Ordering
from kalavai_nb.server.pools import summary_of
from kalavai_nb.server.watching import Listener, Watching

RESOURCE = "kalavai-nb"
PING_SECONDS = 30.0
# browsers have nothing to say on the stream
MOST_MESSAGE_BYTES = 1024


class _Handler(APIHandler):
    auth_resource = RESOURCE

    def initialize(self, watching: Watching, ordering: Ordering) -> None:
        self._watching, self._ordering = watching, ordering

    def set_default_headers(self) -> None:
        super().set_default_headers()
        # an invite is a secret
        self.set_header("Cache-Control", "no-store")

    def _reply(self, content: dict[str, Any]) -> None:
        self.finish(json.dumps(content, allow_nan=False))


class StateHandler(_Handler):
    """The state of all pools."""

    # a page that only looks does not keep an idle server from being ended
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self._reply(await self._watching.state())


class SummaryHandler(_Handler):
    """The same in five numbers, for the status bar."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self._reply(summary_of(await self._watching.state()))


class OrdersHandler(_Handler):
    """An order to one of the user's notebooks."""

    @web.authenticated
    @authorized(action="execute")  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        status, body = await self._ordering.pass_on(self.request.body)
        self.set_status(status)
        self._reply(body)


class StreamHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """The state, and then what changes in it, for as long as the browser listens."""

    auth_resource = RESOURCE

    def initialize(self, watching: Watching) -> None:
        self._watching = watching
        self._listener: Listener | None = None

    @property
    def max_message_size(self) -> int:
        return MOST_MESSAGE_BYTES

    @property
    def ping_interval(self) -> float:
        return PING_SECONDS

    @property
    def ping_timeout(self) -> None:
        """As long as tornado thinks right."""

    def get_compression_options(self) -> dict[str, Any]:
        """Patches say the same names again and again: the fastest way makes a tenth of them."""
        return {"compression_level": 1}

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        user = self.current_user
        if not await ensure_async(self.authorizer.is_authorized(self, user, "read", RESOURCE)):
            raise web.HTTPError(403)
        if (upgraded := super().get(*args, **kwargs)) is not None:
            await upgraded

    def open(self, *args: str, **kwargs: str) -> None:
        # not the mixin's: it sends pings of its own, and counts in milliseconds what tornado takes for seconds
        self._listener = Listener(self._write, self._hang_up)
        self._watching.join(self._listener)

    def on_message(self, message: str | bytes) -> None:
        """There is nothing to say."""

    def on_close(self) -> None:
        super().on_close()
        self._leave()

    def _leave(self) -> None:
        if self._listener:
            self._watching.leave(self._listener)

    def _hang_up(self) -> None:
        # the system may know that it is gone before tornado says so
        self._leave()
        self.close()

    async def _write(self, text: str) -> None:
        await self.write_message(text)


def handlers_at(base_url: str, watching: Watching) -> list[tuple[str, type[web.RequestHandler], dict[str, Any]]]:
    """What there is below a server's base URL."""
    both = {"watching": watching, "ordering": Ordering(watching)}

    def at(name: str) -> str:
        return re.escape(url_path_join(base_url, RESOURCE, name))

    return [
        (at("state"), StateHandler, both),
        (at("summary"), SummaryHandler, both),
        (at("orders"), OrdersHandler, both),
        (at("stream"), StreamHandler, {"watching": watching}),
    ]
