"""Values that ranks hand out: small ones come home at once, large ones when they are asked for."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from kalavai_nb.capture import human_bytes
from kalavai_nb.engine import Engine
from kalavai_nb.errors import PoolClosed
from kalavai_nb.gang import Rank
from kalavai_nb.state import Device

HOME_BYTES = 100_000_000


class RemoteValue:
    """A large value that stays in the pool for as long as this object is kept. It outlives the rank, not its machine.

    ``what`` describes it, ``size_bytes`` is its size as it is sent, ``where`` the rank that made it.
    """

    def __init__(self, engine: Engine, rank: Rank, handed: Mapping[str, Any]) -> None:
        self._engine, self._device, self._handed = engine, rank.devices[0], dict(handed)
        self.what: str = handed["what"]
        self.size_bytes: int = sum(handed["sizes"])
        self.where = f"rank {rank.number} ({rank.where})"
        # in whichever thread that happens: it only sends a message
        weakref.finalize(self, _forget, engine, self._device, self._handed).atexit = False

    def get(self) -> Any:
        """Bring the value home. Raises PoolClosed where its worker is gone."""
        return self._engine.fetch(self._device, self._handed)

    def __repr__(self) -> str:
        return f"<{self.what}, {human_bytes(self.size_bytes)}, on {self.where}; .get() brings it home>"


def bring_home(engine: Engine, rank: Rank, handed: Mapping[str, Any]) -> Any:
    """The value itself, or a RemoteValue where it is over 100 MB."""
    if sum(handed["sizes"]) > HOME_BYTES:
        return RemoteValue(engine, rank, handed)
    value = engine.fetch(rank.devices[0], dict(handed))
    _forget(engine, rank.devices[0], handed)
    return value


def _forget(engine: Engine, device: Device, handed: Mapping[str, Any]) -> None:
    """Let the machine forget what is at home, or wanted by nobody any more."""
    if "inline" not in handed:
        with contextlib.suppress(PoolClosed):
            engine.drop([handed["digest"]], [device])


def split(name: str, value: Any, parts: int) -> list[Any]:
    """``value`` in that many consecutive parts of nearly equal length, each of its own kind.

    Lists, tuples, ranges, arrays, tensors and DataFrames; TypeError for what has no length or cannot be sliced.
    """
    kind = type(value).__name__
    try:
        length = len(value)
        bounds = [length * part // parts for part in range(parts + 1)]
        rows = value.iloc if hasattr(value, "iloc") else value
        if isinstance(value, (Mapping, str, bytes)) or not (
            isinstance(value, Sequence) or hasattr(rows, "__getitem__")
        ):
            raise TypeError(kind)
        return [rows[low:high] for low, high in pairwise(bounds)]
    except TypeError:
        raise TypeError(f"scatter={name} cannot be split: wanted a list, array or DataFrame, got {kind}") from None
