"""Whether a trial that did not end well runs again, and where. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kalavai_nb.state import Device, Need
from kalavai_nb.trials.end import End

# how often a trial runs again whose worker was lost: machines of friends come and go, and the same trial may be unlucky
# more than once; one that takes workers with it does not get them all
DEATHS = 3


@dataclass(frozen=True)
class Job:
    """What counts when a trial is given away: what it needs, how often its worker was lost, how often it failed."""

    need: Need
    deaths: int = 0
    failures: int = 0
    note: str = ""

    def renewed(self) -> Job:
        """The same after a checkpoint: losing its worker costs no more than what came since."""
        return replace(self, deaths=0)

    @property
    def priority(self) -> int:
        """Less comes first. Those that went wrong come last, behind all that has not been tried.

        A first loss is no fault of the trial's: it has its old place, before those that come after it in the sweep. One
        that is lost again may be what takes its workers with it.
        """
        return max(0, self.deaths - 1) + self.failures


def again(
    job: Job, end: End, retries: int, ran_on: Sequence[Device], devices: Callable[[], Sequence[Device]]
) -> Job | None:
    """The same trial to be tried again; None where this end is final. ``devices`` says which there are."""
    if end["status"] == "left":
        # whoever lent the device took it back: the trial has no part in that
        return job
    if end["status"] == "lost":
        return replace(job, deaths=job.deaths + 1) if job.deaths < DEATHS else None
    if end.get("gpu_out_of_memory"):
        memory = "the memory that is lent" if end["status"] == "died" else "GPU memory"
        return _with_more_memory(job, memory, ran_on, devices())
    return replace(job, failures=job.failures + 1) if job.failures < retries else None


def _with_more_memory(job: Job, memory: str, ran_on: Sequence[Device], devices: Sequence[Device]) -> Job | None:
    need = job.need
    if need.share < 1:
        note = f"ran out of {memory} at gpus={need.share:g}; ran again alone on a whole device"
        return replace(job, need=replace(need, share=1.0), failures=job.failures + 1, note=note)
    had = min(device.memory_bytes for device in ran_on)
    more = replace(need, vram_bytes=had + 1)
    if sum(map(more.fits, devices)) < need.count:
        return None
    note = f"ran out of {memory} on {ran_on[0].name} ({had / 2**30:.0f} GiB); ran again on a larger device"
    return replace(job, need=more, failures=job.failures + 1, note=note)
