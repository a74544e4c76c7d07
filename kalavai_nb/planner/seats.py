"""A device as the planner sees it: how much room, how fast."""

from __future__ import annotations

from dataclasses import dataclass

USABLE = 0.9


@dataclass(frozen=True)
class Seat:
    """Where a stage can be.

    ``seconds_per_layer`` is measured: one token through one average layer; None is not known. ``bandwidth`` is what the
    memory gives in bytes per second, from a table where it is not measured; None is not known. ``id`` is the pool's.
    """

    name: str
    free_bytes: int
    seconds_per_layer: float | None = None
    bandwidth: float | None = None
    id: str = ""

    @property
    def usable_bytes(self) -> int:
        """The tenth that is left is for the process itself: a CUDA context alone takes 0.3 to 2 GiB."""
        return int(self.free_bytes * USABLE)
