"""Health means that a token was generated; whatever less is asked, a server whose model is dead says yes."""

from __future__ import annotations

import asyncio
import time

from kalavai_nb.lm.serve.answers import Answers
from kalavai_nb.lm.serve.faults import gone
from kalavai_nb.lm.serve.served import Served

HEALTH_SECONDS = 10.0


class Health:
    """Waits for a token: of a probe, which all who ask meanwhile share, or of whatever else is under way."""

    def __init__(self, lm: Served) -> None:
        self._lm = lm
        self._token = asyncio.Event()
        self._check: asyncio.Task[float] | None = None

    def note(self) -> None:
        """A token came."""
        self._token.set()

    async def check(self) -> float:
        """How many seconds a token took. Raises what is wrong, or that none came in time."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._wait())
        # one who leaves does not take the answer from the others
        return await asyncio.shield(self._check)

    async def _wait(self) -> float:
        started = time.monotonic()
        self._token.clear()
        probe = Answers(self._lm, self.note)
        try:
            probe.submit(0, [0], max_new_tokens=1)
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._first(probe)
        except TimeoutError:
            raise gone(f"No token was generated within {HEALTH_SECONDS:.0f} s.", again=True) from None
        finally:
            probe.cancel()
        return time.monotonic() - started

    async def _first(self, probe: Answers) -> None:
        waiting = {asyncio.create_task(probe.next()), asyncio.create_task(self._token.wait())}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waiting:
                task.cancel()
