"""What is between devices: how far, how wide."""

from __future__ import annotations

from dataclasses import dataclass

from kalavai_nb.errors import OptionError
from kalavai_nb.planner.ring import Matrix
from kalavai_nb.planner.split import Split

# between homes, over the internet
RTT_SECONDS = 0.02
BITS_PER_SECOND = 100e6


@dataclass(frozen=True)
class Links:
    """One round trip for all pairs, or a matrix of those of the devices that there are; None is not known."""

    rtt_seconds: float | Matrix | None = None
    bits_per_second: float | None = None

    def check(self, devices: int) -> None:
        """Raise OptionError for a matrix that is not of these devices, or for numbers that cannot be meant."""
        matrix = self._matrix
        if matrix is not None and (len(matrix) != devices or any(len(row) != devices for row in matrix)):
            raise OptionError(f"rtt_seconds= wants one row and column for each of the {devices} devices.")
        times = [self._same] if matrix is None else [rtt for row in matrix for rtt in row]
        if not all(0 <= rtt < 60 for rtt in times):
            raise OptionError("rtt_seconds= cannot be meant: wanted seconds, such as 0.02.")
        if self.bits_per_second is not None and not self.bits_per_second > 0:
            raise OptionError(
                f"link_bits_per_second={self.bits_per_second} cannot be meant: wanted bits, such as 100e6."
            )

    @property
    def width(self) -> float:
        """Bits a second, as given or as assumed."""
        return BITS_PER_SECOND if self.bits_per_second is None else self.bits_per_second

    @property
    def assumed(self) -> str:
        """What of it nobody said; empty where all is known."""
        far = f"a round trip takes {1000 * RTT_SECONDS:g} ms" if self.rtt_seconds is None else ""
        wide = f"a link carries {BITS_PER_SECOND / 1e6:g} Mbit/s" if self.bits_per_second is None else ""
        return " and ".join(filter(None, [far, wide]))

    def matrix(self, devices: int) -> Matrix | None:
        """Of so many devices, those that there are first. None where all are equally far, and order does not matter."""
        if (known := self._matrix) is None:
            return None
        there = len(known)
        return [
            [known[a][b] if max(a, b) < there else RTT_SECONDS * (a != b) for b in range(devices)]
            for a in range(devices)
        ]

    def round_seconds(self, found: Split) -> float:
        """Once round the ring of these stages."""
        if self._matrix is not None or len(found.stages) == 1:
            return found.ring_seconds
        return len(found.stages) * self._same / 2

    @property
    def _matrix(self) -> Matrix | None:
        return None if self.rtt_seconds is None or isinstance(self.rtt_seconds, (int, float)) else self.rtt_seconds

    @property
    def _same(self) -> float:
        return float(self.rtt_seconds) if isinstance(self.rtt_seconds, (int, float)) else RTT_SECONDS
