"""Which member holds which layers: the planner's answer for those who are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from kalavai_nb.lm.member import Member
from kalavai_nb.lm.quants import quant_named, quants_on_devices
from kalavai_nb.lm.settings import Settings
from kalavai_nb.planner.seats import Seat
from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.split import Split, Stage, split

# a device that is so many times slower or faster than others of its name is no chance: it throttles, or shares
UNLIKE = 2.0


@dataclass
class Place:
    """A stage as it was planned, and the member that has it now."""

    planned: Stage
    member: Member

    @property
    def layers(self) -> tuple[int, int]:
        return self.planned.start, self.planned.end

    def will_do(self, member: Member) -> bool:
        """Whether another member could take its place."""
        return self.planned.memory_bytes <= Seat(str(member), member.free_bytes).usable_bytes


def seat(
    shape: ModelShape, members: Sequence[Member], settings: Settings, stages: int | None
) -> tuple[list[Place], Split]:
    """Places for all layers, in the order of the ring. Raises DoesNotFit where these members cannot hold the model."""
    found = split(
        shape,
        [Seat(str(m), m.free_bytes, pace, id=m.name) for m, pace in zip(members, paces(members), strict=True)],
        quant=quant_named(settings.quant),
        max_len=settings.max_len,
        max_batch=settings.max_batch,
        rtt_seconds=_round_trips(members),
        stages=stages,
        quants=quants_on_devices(),
    )
    by_name = {member.name: member for member in members}
    return [Place(stage, by_name[stage.device.id]) for stage in found.stages], found


def paces(members: Sequence[Member]) -> list[float | None]:
    """Seconds per layer of each. Devices of one name are alike, whatever else kept one busy while it was measured."""
    alike: dict[str, list[float]] = {}
    for member in members:
        if member.seconds_per_layer is not None:
            alike.setdefault(member.device.name, []).append(member.seconds_per_layer)
    found: list[float | None] = []
    for member in members:
        measured, usual = member.seconds_per_layer, median(alike.get(member.device.name, [0.0]))
        is_usual = measured is not None and usual / UNLIKE < measured < usual * UNLIKE
        found.append(usual if is_usual else measured)
    return found


def _round_trips(members: Sequence[Member]) -> list[list[float]] | None:
    """Measured where machines differ; on one machine, the way is as good as none."""
    if len({member.device.machine for member in members}) == 1:
        return None
    far = 1.0
    return [[0.0 if a is b else (a.reached or {}).get(b.name, far) for b in members] for a in members]
