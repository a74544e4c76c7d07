"""Answers on their way out: at once or as server-sent events, given up as soon as nobody listens any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kalavai_nb.lm.serve.faults import Fault
from kalavai_nb.lm.serve.words import Json

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_heard(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up. Raises ClientGone then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def to_bytes(value: Json) -> bytes:
    """As JSON."""
    # half of a pair of surrogates, which JSON can carry, has no bytes
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def reply(value: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer that is a JSON object."""
    return Response(to_bytes(value), status, headers, media_type="application/json")


class Events(Response):
    """A stream of chunks as OpenAI sends them. ``fault_of`` words what went wrong; ``close`` is called at the end."""

    def __init__(
        self, chunks: AsyncIterator[Json], fault_of: Callable[[Exception], Fault], close: Callable[[], None]
    ) -> None:
        # proxies are asked not to collect events
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(media_type="text/event-stream", headers=headers)
        del self.headers["content-length"]
        self._chunks, self._fault_of, self._close = chunks, fault_of, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_heard(receive, self._send_all(send))
        except ClientGone:
            pass
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await _event(send, to_bytes(chunk))
            await _event(send, b"[DONE]")
        except Exception as error:
            # the status is out already; the official client raises this
            await _event(send, to_bytes(self._fault_of(error).to_dict()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(send: Send, data: bytes) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
