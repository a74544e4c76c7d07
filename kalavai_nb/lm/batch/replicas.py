"""More copies of a small model for as long as a run lasts, one on each device that is free."""

from __future__ import annotations

import threading

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.lm.rings import Rings

MOST_COPIES = 64


class Replicas:
    """Copies come up in a thread of their own: rows go to those that are there already."""

    def __init__(self, rings: Rings, wanted: int | None) -> None:
        self._rings, self._wanted = rings, wanted
        self._had = len(rings.all)
        self._lock = threading.Lock()
        self._grown = 0
        self._is_closed = False
        self.note = ""
        self._thread = threading.Thread(target=self._grow, name="kalavai-map-replicas", daemon=True)

    def start(self, rows: int | None) -> None:
        """Bring copies up, not more than that many rows can keep busy (None: who knows how many)."""
        most = self._most(rows)
        if most > self._had:
            self._wanted = most
            self._thread.start()

    def close(self) -> None:
        """Give back what came. Copies that are still on their way go when they arrive; nobody waits for that."""
        with self._lock:
            self._is_closed = True
            self._give_back()

    def _most(self, rows: int | None) -> int:
        if self._wanted is not None:
            return self._wanted
        spans_several = len(self._rings.all[0].stages) > 1
        useful = MOST_COPIES if rows is None else -(-rows // self._rings.settings.max_batch)
        return self._had if spans_several else min(MOST_COPIES, useful)

    def _grow(self) -> None:
        assert self._wanted is not None
        grown = 0
        try:
            grown = self._rings.grow(self._wanted - self._had)
        except KalavaiError as error:
            self.note = f"no further copies: {error}"
        with self._lock:
            self._grown = grown
            if self._is_closed:
                self._give_back()

    def _give_back(self) -> None:
        if self._grown:
            self._grown = 0
            self._rings.shrink(self._had)


def read_replicas(replicas: object) -> int | None:
    """None for "auto". Raises OptionError."""
    if replicas == "auto":
        return None
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise OptionError(f"replicas= wants 'auto' or a whole number of at least 1; got {replicas!r}.")
    return replicas
