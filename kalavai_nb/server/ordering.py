"""An order from a browser on its way to the notebook that it is for, and the answer on its way back."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from kalavai_nb.registry.asking import VERBS, ask, take_back, take_reply
from kalavai_nb.registry.entry import MOST_TARGET_CHARACTERS
from kalavai_nb.server.owners import Owner
from kalavai_nb.server.watching import Watching

ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.05
MOST_BODY_BYTES = 16 << 10
UNDER_WAY = 32
FIELDS = ("pool", "owner", "verb", "target")


class Answer(NamedTuple):
    """What the browser gets: a status of HTTP, and JSON."""

    status: int
    body: dict[str, Any]


class Ordering:
    """Passes orders on. Waits for answers without keeping the server's loop busy."""

    def __init__(self, watching: Watching, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._watching, self._answer_seconds = watching, answer_seconds
        self._under_way = 0

    async def pass_on(self, body: bytes) -> Answer:
        """Have it done, and say how that went."""
        if isinstance(asked := _read(body), str):
            return _refused(400, asked)
        pool, owner, verb, target = asked
        await self._watching.state(0)
        found = self._watching.pools.owner(pool, owner)
        if found is None:
            return _refused(404, "there is no such notebook of yours any more: it has left the pool, or has ended.")
        if trouble := self._trouble(found, verb):
            return _refused(409, trouble)
        self._under_way += 1
        try:
            return await self._give(found, verb, target)
        finally:
            self._under_way -= 1

    def _trouble(self, owner: Owner, verb: str) -> str:
        label = owner.published.label
        if owner.link == "ended":
            return f"{label} has ended: what it held is free, or will soon be."
        if verb == "invite" and not owner.published.can_invite:
            return f"{label} has joined this pool by an invite, and cannot give any: ask whoever opened the pool."
        if self._under_way >= UNDER_WAY:
            return f"{UNDER_WAY} orders wait for an answer: try again when some of them have it."
        return ""

    async def _give(self, owner: Owner, verb: str, target: str) -> Answer:
        path, off_loop = self._watching.pools.reader.path, self._watching.off_loop
        label, loop = owner.published.label, asyncio.get_running_loop()
        try:
            id = await off_loop(ask, path, owner.entry, verb, target)
            until = loop.time() + self._answer_seconds
            while loop.time() < until:
                if reply := await off_loop(take_reply, path, owner.entry, id):
                    return Answer(200, {"ok": reply.ok, "text": reply.text})
                await asyncio.sleep(POLL_SECONDS)
            if await off_loop(take_back, path, owner.entry, id):
                return _refused(504, f"{label} does not answer, and nothing was done: see whether its kernel hangs.")
        except OSError as error:
            return _refused(409, f"{label} cannot be told ({error.strerror or error}).")
        seconds = f"{self._answer_seconds:g} s"
        return _refused(504, f"{label} has the order, but gave no answer in {seconds}: it may still do it.")


def _read(body: bytes) -> tuple[str, ...] | str:
    """Pool, owner, verb and target; or the sentence that says why it is no order."""
    wanted = f"an order is a JSON object of texts: {', '.join(FIELDS)}"
    if len(body) > MOST_BODY_BYTES:
        return f"{wanted}; this one is larger than {MOST_BODY_BYTES >> 10} KiB."
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        return f"{wanted}; this is no JSON."
    named = asked if isinstance(asked, dict) else {}
    values = [value for field in FIELDS if isinstance(value := named.get(field), str)]
    if len(values) < len(FIELDS):
        return f"{wanted}; this one has something else."
    if values[2] not in VERBS:
        return f"the order {values[2][:40]!r} is not known here; there is: {', '.join(VERBS)}."
    if len(values[3]) > MOST_TARGET_CHARACTERS:
        return f"the target of an order has at most {MOST_TARGET_CHARACTERS} characters; this one has {len(values[3])}."
    return tuple(values)


def _refused(status: int, sentence: str) -> Answer:
    return Answer(status, {"message": sentence})
