"""The copies of a model: requests go to the one that has least to do; copies come and go."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

from kalavai_nb.errors import KalavaiError, ModelError, NotEnoughDevices
from kalavai_nb.lm.request import Request
from kalavai_nb.lm.ring import Ring
from kalavai_nb.lm.settings import Settings

Adopt = Callable[[Request], bool]


class Rings:
    """Rings of so many ``stages`` each, made by ``make(number, adopt)``."""

    def __init__(self, name: str, settings: Settings, stages: int, make: Callable[[int, Adopt], Ring]) -> None:
        self.name, self.settings, self._stages, self._make = name, settings, stages, make
        self._numbers = itertools.count()
        self._rings: list[Ring] = []
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def all(self) -> list[Ring]:
        with self._lock:
            return list(self._rings)

    def add(
        self,
        copies: int,
        devices: Sequence[str],
        on_wait: Callable[[str], None],
        look: Callable[[], None],
        wait: float | None = None,
    ) -> int:
        """Bring up more copies, on the devices named first if they are free. Returns how many it were.

        With ``wait`` seconds, fewer will do; without, it waits for all, and raises what keeps one from coming up.
        """
        new: list[Ring] = []
        try:
            for number in range(copies):
                ring = self._make(next(self._numbers), self._adopt)
                new.append(ring)
                ring.lease(self._stages, on_wait, tuple(devices[number * self._stages :][: self._stages]), wait)
                ring.start()
        except NotEnoughDevices:
            new.pop().close()
            if wait is None:
                _close(new)
                raise
        except BaseException:
            _close(new)
            raise
        try:
            for ring in new:
                ring.wait(look)
        except BaseException:
            _close(new)
            raise
        with self._lock:
            is_late, kept = self._is_closed, new if not self._is_closed else []
            self._rings += kept
        if is_late:
            _close(new)
            raise ModelError(f"{self.name} was closed while a copy of it came up.")
        return len(new)

    def grow(self, copies: int) -> int:
        """Add copies on devices that are free at this moment."""
        return self.add(copies, (), lambda _: None, lambda: None, wait=0.0)

    def shrink(self, copies: int) -> None:
        """Close copies until so many are left; what they have not finished goes to the others."""
        with self._lock:
            # those that have ended go first
            in_order = sorted(self._rings, key=lambda ring: ring.error is not None)
            self._rings, closed = in_order[: max(1, copies)], in_order[max(1, copies) :]
        for ring in closed:
            orphans = ring.take_unfinished()
            ring.close()
            for request in orphans:
                try:
                    self.submit(request)
                except KalavaiError as error:
                    request.fail(error)

    def check(self) -> None:
        """Raise ModelError where it was closed."""
        if self._is_closed:
            raise ModelError(f"{self.name} was closed; load it again with pool.load(…).")

    def running(self) -> Ring:
        """One that runs, if there is one."""
        return min(self.all, key=_reluctance)

    def submit(self, request: Request) -> None:
        """To the ring that has least to do. Raises what the last of them ended of."""
        rings = self.all
        alive = [ring for ring in rings if ring.error is None]
        if not alive:
            raise (rings[0].error if rings else None) or ModelError(f"{self.name} is closed; load it again.")
        min(alive, key=_reluctance).submit(request)

    def cancel(self, requests: Sequence[Request]) -> None:
        for ring in self.all if requests else ():
            ring.cancel(requests)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        _close(self.all)

    def _adopt(self, request: Request) -> bool:
        """Take over what a lost ring has not finished, if there is another one."""
        alive = [ring for ring in self.all if ring.error is None]
        if alive:
            min(alive, key=_reluctance).submit(request)
        return bool(alive)


def _reluctance(ring: Ring) -> tuple[bool, bool, int]:
    """Rings that have ended come last, then those that are being mended, then those that have much to do."""
    return ring.error is not None, ring.state != "running", ring.load


def _close(rings: Sequence[Ring]) -> None:
    for ring in rings:
        ring.close()
