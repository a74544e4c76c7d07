"""Why the owner of this machine keeps a device at this moment: it is not among those lent, the hour, or what runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from kalavai_nb.errors import OptionError
from kalavai_nb.lending.idle import IdleWatch
from kalavai_nb.lending.limits import Limits
from kalavai_nb.state import Device
from kalavai_nb.worker.power import why_no_power_limit

LOOK_SECONDS = 1.0


def check_they_can_be_kept(limits: Limits, devices: Iterable[Device]) -> None:
    """Raise OptionError for limits that cannot be kept on these devices of this machine."""
    lent = list(filter(limits.lends, devices))
    if limits.when_idle and (trouble := IdleWatch(os.getpid(), lent).trouble):
        raise OptionError(trouble)
    if limits.max_power_watts is not None:
        for device in lent:
            if trouble := why_no_power_limit(device):
                raise OptionError(trouble)


class Owner:
    """Looks at the clock, and with ``when_idle`` at what else runs here; what comes from this process is the pool's.

    ``on_change`` hears that the reasons may be others now.
    """

    def __init__(self, devices: Sequence[Device], on_change: Callable[[], None]) -> None:
        self._devices, self._on_change = tuple(devices), on_change
        self._watch: IdleWatch | None = None
        self._looking: asyncio.Task[None] | None = None
        # None: not looked yet
        self._use: str | None = None

    def check(self, limits: Limits) -> None:
        """Raise OptionError for limits that cannot be kept on this machine."""
        check_they_can_be_kept(limits, self._devices)

    def reasons(self, limits: Limits) -> dict[str, str]:
        """Why each device that is not to be lent at this moment is not, by its id."""
        why = ""
        if not limits.open_now(datetime.now()):
            why = f"lent {limits.hours} only"
        elif limits.when_idle:
            why = self._in_use()
        else:
            self._stop()
        reasons = {device.id: why if limits.lends(device) else "not lent" for device in self._devices}
        return {id: reason for id, reason in reasons.items() if reason}

    async def close(self) -> None:
        """Look no more, and let the drivers go. Idempotent."""
        self._stop()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    # inside

    def _in_use(self) -> str:
        if self._looking is None:
            self._use, self._looking = None, asyncio.create_task(self._keep_looking(self._idle_watch()))
        if self._use is None:
            return "looking whether it is in use"
        return f"in use: {self._use}" if self._use else ""

    async def _keep_looking(self, watch: IdleWatch) -> None:
        while True:
            # a driver may take its time, or hang
            use = await asyncio.to_thread(watch.look)
            if use != self._use:
                self._use = use
                self._on_change()
            await asyncio.sleep(LOOK_SECONDS)

    def _stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _idle_watch(self) -> IdleWatch:
        if self._watch is None:
            self._watch = IdleWatch(os.getpid(), self._devices)
        return self._watch
