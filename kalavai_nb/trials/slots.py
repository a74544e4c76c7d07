"""Where the trials of a sweep run, and how long they take there."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

from kalavai_nb.state import Device, Need
from kalavai_nb.trials.judge import Job
from kalavai_nb.trials.trial_queue import TrialQueue

# what is handed to a slot at once takes about so long, so that a round trip for each trial costs little
BATCH_SECONDS = 0.1
MOST_AT_ONCE = 64
REMEMBERED = 32
# what somebody else waits for is given back after so long, and one trial: a device that only changes hands is no use
SLICE_SECONDS = 0.5
# a trial that takes this much longer than most is worth a second attempt elsewhere
STRAGGLES = 1.5


@dataclass
class Slot:
    """A lease, and the trials that were handed to it, in the order in which they run."""

    lease: str
    devices: tuple[Device, ...]
    need: Need
    assigned: list[int] = field(default_factory=list)
    # somebody else waits for it
    wanted: bool = False
    # its owner takes the device back
    leaving: bool = False
    since: float = field(default_factory=time.monotonic)
    fed: bool = False

    @property
    def is_leaving(self) -> bool:
        """Whether it is to be given back after the trials it has: its device leaves, or it is wanted and was of use."""
        return self.leaving or (self.wanted and self.fed and time.monotonic() - self.since >= SLICE_SECONDS)

    @property
    def worker(self) -> str:
        return self.devices[0].worker

    def __str__(self) -> str:
        indices = ",".join(str(device.index) for device in self.devices)
        return f"{self.devices[0].host} {self.devices[0].kind}:{indices}"


class Pace:
    """How long trials take: lately, and on each device."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._by_device: dict[str, deque[float]] = {}

    def add(self, slot: Slot, seconds: float) -> None:
        self._recent.append(seconds)
        self._by_device.setdefault(slot.devices[0].id, deque(maxlen=REMEMBERED)).append(seconds)

    def at_once(self) -> int:
        """How many trials to hand to a slot at a time."""
        if not self._recent:
            return 1
        mean = sum(self._recent) / len(self._recent)
        return max(1, min(MOST_AT_ONCE, int(BATCH_SECONDS / max(mean, 1e-6))))

    def fastest(self) -> tuple[str, ...]:
        """The devices that have been timed, fastest first."""
        return tuple(sorted(self._by_device, key=lambda id: statistics.median(self._by_device[id])))

    def straggles(self, running_seconds: float) -> bool:
        """Whether a trial that has run so long takes much longer than most."""
        return bool(self._recent) and running_seconds > STRAGGLES * statistics.median(self._recent)


@dataclass
class Board:
    """What the thread of a sweep knows at this moment: who waits, where trials are, how long they take."""

    queue: TrialQueue = field(default_factory=TrialQueue)
    jobs: dict[int, Job] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)

    def put(self, index: int, job: Job) -> None:
        """This trial waits."""
        self.jobs[index] = job
        self.queue.put(index, job)

    def copies(self, index: int) -> list[Slot]:
        """The slots that have this trial."""
        return [slot for slot in self.slots.values() if index in slot.assigned]

    @property
    def at_work(self) -> bool:
        return any(slot.assigned for slot in self.slots.values())
