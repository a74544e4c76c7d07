"""The endpoints: who may ask, what is read, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from kalavai_nb.errors import KalavaiError, ModelError, OptionError
from kalavai_nb.lm.serve.answers import Answers
from kalavai_nb.lm.serve.asked import Asked
from kalavai_nb.lm.serve.faults import Fault, fault_of, gone, refused, too_large, too_long, unknown_model, wrong_key
from kalavai_nb.lm.serve.health import Health
from kalavai_nb.lm.serve.replies import ClientGone, Events, reply, while_heard
from kalavai_nb.lm.serve.served import Served
from kalavai_nb.lm.serve.telling import Telling
from kalavai_nb.lm.serve.words import ChatWords, Json, TextWords, Words

MOST_BODY_BYTES = 8 << 20
# what proxies say when the client has hung up; nobody hears it
HUNG_UP = 499

logger = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


class Endpoints:
    """What a server answers. All but `hang_up` happens in its event loop."""

    def __init__(self, lm: Served, name: str, key: str) -> None:
        self._lm, self._name, self._key = lm, name, key.encode()
        self._created = int(time.time())
        self._health = Health(lm)
        self._active: set[Answers] = set()
        self._closing = False
        # one thread: texts of whatever length keep neither the loop nor each other's tokenizer busy
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="kalavai-serve-tokens")

    def app(self) -> Starlette:
        chat = functools.partial(self._complete, ChatWords())
        text = functools.partial(self._complete, TextWords())
        routes = [
            Route("/v1/chat/completions", self._guarded(chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(text), methods=["POST"]),
            Route("/v1/models", self._guarded(self._models), methods=["GET"]),
            Route("/v1/models/{id:path}", self._guarded(self._model), methods=["GET"]),
            Route("/health", self._guarded(self._check_health, keyless=True), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _no_such_place})

    def hang_up(self) -> None:
        """Begin nothing any more, and end what is under way. From any thread."""
        self._closing = True
        for answers in list(self._active):
            answers.cancel()

    def close(self) -> None:
        """Keep no thread. When nothing is answered any more."""
        self._reader.shutdown(wait=False)

    # generating

    async def _complete(self, words: Words, request: Request) -> Response:
        asked, prompts = await self._off_loop(self._understand, words, await self._body(request))
        most = [self._max_tokens(ids, asked, words) for ids in prompts]
        self._check_open()
        answers = Answers(self._lm, self._health.note)
        self._active.add(answers)
        try:
            answers.begin(prompts, asked, most)
            return await self._tell(words, asked, len(prompts) * asked.choices, answers, request)
        except BaseException:
            self._end(answers)
            raise

    async def _tell(self, words: Words, asked: Asked, choices: int, answers: Answers, request: Request) -> Response:
        scored = asked.sampling["logprobs"] is not None
        telling = Telling(words, self._name, answers, scored, asked.include_usage)
        if not asked.stream:
            whole = await while_heard(request.receive, telling.whole(choices))
            self._active.discard(answers)
            return reply(whole)
        # what fails before the first token still has a status of its own
        first = await while_heard(request.receive, answers.next())
        fault_of = functools.partial(self._fault, request)
        return Events(telling.chunks(first, choices), fault_of, functools.partial(self._end, answers))

    def _end(self, answers: Answers) -> None:
        answers.cancel()
        self._active.discard(answers)

    def _understand(self, words: Words, body: bytes) -> tuple[Asked, list[list[int]]]:
        """What is asked for, and its prompts in tokens. On the reader's thread."""
        asked = words.read(_parse(body))
        if asked.model != self._name:
            raise unknown_model(asked.model, self._name)
        try:
            prompts = [self._lm.encode(prompt) for prompt in asked.prompts]
        except (ModelError, OptionError) as error:
            raise refused(str(error), words.prompt) from None
        return asked, prompts

    def _max_tokens(self, ids: list[int], asked: Asked, words: Words) -> int:
        room = self._lm.max_len - len(ids)
        if room < (asked.max_tokens or 1):
            raise too_long(len(ids), asked.max_tokens, self._lm.max_len, words.prompt)
        return asked.max_tokens or room

    # the rest

    async def _models(self, _: Request) -> Response:
        return reply({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["id"] != self._name:
            raise unknown_model(request.path_params["id"], self._name)
        return reply(self._card())

    def _card(self) -> Json:
        card = {"id": self._name, "object": "model", "created": self._created, "owned_by": "kalavai_nb"}
        return {**card, "max_model_len": self._lm.max_len}

    async def _check_health(self, _: Request) -> Response:
        return reply({"status": "ok", "model": self._name, "seconds": round(await self._health.check(), 3)})

    # who asks, and what

    def _guarded(self, endpoint: Endpoint, *, keyless: bool = False) -> Endpoint:
        async def guarded(request: Request) -> Response:
            try:
                if not keyless:
                    self._check_key(request)
                self._check_open()
                return await endpoint(request)
            except (ClientGone, ClientDisconnect):
                return Response(status_code=HUNG_UP)
            except Exception as error:
                fault = self._fault(request, error)
                return reply(fault.to_dict(), fault.status, fault.headers)

        return guarded

    def _fault(self, request: Request, error: Exception) -> Fault:
        fault = fault_of(error, self._lm.error is not None)
        level = logging.ERROR if fault.status >= 500 else logging.INFO
        cause = str(fault) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
        said = (request.method, request.url.path, fault.status, " ".join(cause.split()))
        # where it came from is worth more than a line only if it is an error of ours
        logger.log(level, "%s %s: %d %s", *said, exc_info=None if isinstance(error, Fault | KalavaiError) else error)
        return fault

    def _check_key(self, request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else ""
        if not secrets.compare_digest(given.encode(), self._key):
            raise wrong_key(given)

    def _check_open(self) -> None:
        if self._closing:
            raise gone("This server is closed.")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BODY_BYTES:
                raise too_large(MOST_BODY_BYTES)
        return bytes(body)

    async def _off_loop(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)


def _parse(body: bytes) -> Any:
    try:
        value = json.loads(body, parse_constant=_no_number)
        if b"\\ud" in body.lower():
            # half of a pair of surrogates is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise refused(f"The body of the request is not JSON that can be read: {error}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


async def _no_such_place(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = f"Invalid URL ({request.method} {request.url.path})"
    return reply(Fault(status, message, code="not_found" if status == 404 else None).to_dict(), status)
