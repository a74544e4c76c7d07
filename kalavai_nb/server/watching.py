"""One look at the pools for all browsers: while one of them listens, again and again; else when it is asked for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kalavai_nb.server.patch import diff
from kalavai_nb.server.pools import Pools, State

LOOK_SECONDS = 0.25
TICK_SECONDS = 2.0
# what REST gives may be so old
FRESH_SECONDS = 0.5

T = TypeVar("T")
TICK = json.dumps({"kind": "tick"})


class Listener:
    """A browser that gets each change. ``write`` sends a text, and is done when the system has taken all of it.

    ``hang_up`` is called when it cannot be written to.
    """

    def __init__(self, write: Callable[[str], Awaitable[None]], hang_up: Callable[[], None]) -> None:
        self._write, self.hang_up = write, hang_up
        self._sending: asyncio.Future[None] | None = None
        # the number of the state that it has
        self.seen = 0
        self.told_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether what it was told last is still on its way."""
        return self._sending is not None and not self._sending.done()

    def tell(self, text: str, number: int, now: float) -> None:
        """Send this, which brings it to the state of this number."""
        self.seen, self.told_at = number, now
        self._sending = asyncio.ensure_future(self._send(text))

    async def _send(self, text: str) -> None:
        try:
            await self._write(text)
        except Exception:  # it has gone away, of whatever
            self.hang_up()


class Watching:
    """What is seen of the pools, and who listens. All of it in the loop of the server; files are read by a thread."""

    def __init__(
        self,
        pools: Pools,
        log: logging.Logger,
        *,
        look_seconds: float = LOOK_SECONDS,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self.pools, self._log = pools, log
        self._look_seconds, self._tick_seconds = look_seconds, tick_seconds
        # one thread: what hangs on a file system hangs there, and nobody reads at the same time
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kalavai-pools")
        self._lock = asyncio.Lock()
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._state: State = {"version": 1, "pools": {}}
        self._number, self._looked_at = 0, float("-inf")
        self._whole: tuple[int, str] = (0, "")

    async def state(self, seconds_old: float = FRESH_SECONDS) -> State:
        """The state as it was at most so long ago."""
        async with self._lock:
            if self._now() - self._looked_at > seconds_old:
                before = self._state
                state, patch = await self.off_loop(self._look, before)
                self._looked_at = self._now()
                if patch or not self._number:
                    self._state, self._number = state, self._number + 1
                self._tell_all(patch)
        return self._state

    async def off_loop(self, call: Callable[..., T], *args: Any) -> T:
        """What this gives, called by the thread that handles files."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def join(self, listener: Listener) -> None:
        """Tell it the state, and then what changes."""
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._live())

    def leave(self, listener: Listener) -> None:
        """It is told nothing any more. Idempotent."""
        self._listeners.discard(listener)

    async def _live(self) -> None:
        try:
            while self._listeners:
                due = self._now() + self._look_seconds
                await self.state(0)
                await asyncio.sleep(max(0.0, due - self._now()))
        except Exception:  # an error of ours; browsers ask again by and by
            self._log.exception("the pools of kalavai_nb cannot be watched")
            for listener in list(self._listeners):
                listener.hang_up()

    def _look(self, before: State) -> tuple[State, str]:
        """The state now, and the message with what is new in it; empty where nothing is. By the thread."""
        state = self.pools.look()
        patch = diff(before, state)
        return state, _dump({"kind": "patch", "patch": patch}) if patch else ""

    def _tell_all(self, patch: str) -> None:
        now = self._now()
        for listener in list(self._listeners):
            # what it has not taken yet is enough for it; it will get the whole state then
            if listener.busy:
                continue
            if listener.seen == self._number:
                if now - listener.told_at >= self._tick_seconds:
                    listener.tell(TICK, self._number, now)
            elif patch and listener.seen and listener.seen == self._number - 1:
                listener.tell(patch, self._number, now)
            else:
                listener.tell(self._whole_state(), self._number, now)

    def _whole_state(self) -> str:
        if self._whole[0] != self._number:
            self._whole = self._number, _dump({"kind": "state", "state": self._state})
        return self._whole[1]

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _dump(message: dict[str, Any]) -> str:
    # strict: browsers read no NaN
    return json.dumps(message, allow_nan=False, separators=(",", ":"))
