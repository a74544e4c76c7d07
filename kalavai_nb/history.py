"""What is remembered of one device: its last reading, and ten minutes of how busy and how full it was."""

from __future__ import annotations

from collections import deque

from kalavai_nb.reading import Reading
from kalavai_nb.snapshot import History

BIN_SECONDS = 10
BINS = 60
NONE = -1
# less than this is not work
BUSY = 0.05


class Record:
    """Readings in bins of ten seconds of the clock. The bin that is not full yet is not part of the `history`.

    ``busy_at`` is when it was last seen at work; where nobody can tell, it counts as always at work.
    """

    def __init__(self, now: float) -> None:
        self.reading: Reading | None = None
        self.heard_at = self.busy_at = now
        self._bins: deque[tuple[int, int]] = deque(maxlen=BINS)
        self._bin = int(now // BIN_SECONDS)
        self._open: list[Reading] = []

    def add(self, reading: Reading, now: float) -> None:
        """One more reading."""
        self._turn(now)
        self.reading, self.heard_at = reading, now
        self._open.append(reading)
        if reading.utilisation is None or reading.utilisation >= BUSY:
            self.busy_at = now

    def history(self, now: float) -> History:
        """The last full bins, as many as there are to be."""
        self._turn(now)
        bins = [(NONE, NONE)] * (BINS - len(self._bins)) + list(self._bins)
        return History(tuple(each[0] for each in bins), tuple(each[1] for each in bins))

    def _turn(self, now: float) -> None:
        """Close the bins that are over."""
        current = int(now // BIN_SECONDS)
        if current < self._bin - 1:
            # the clock was set back: what is said from now on is of now
            self._bin, self._open = current, []
        for _ in range(min(BINS, current - self._bin)):
            closed, self._open = self._open, []
            use = _percent([reading.utilisation for reading in closed])
            self._bins.append((use, _percent([reading.memory_fraction for reading in closed])))
        self._bin = max(self._bin, current)


def _percent(fractions: list[float | None]) -> int:
    """The mean of those that are known, in whole percents."""
    known = [fraction for fraction in fractions if fraction is not None]
    return min(100, max(0, round(100 * sum(known) / len(known)))) if known else NONE
