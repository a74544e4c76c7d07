"""The members of a ring in their places: brought up, linked, and mended when some are lost.

Bringing up and mending are the same: every stage has a living member, which loads its layers; then all are linked under
a new epoch. Whoever dies meanwhile is replaced, and it begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kalavai_nb.errors import ModelError, ModelLost
from kalavai_nb.lm.crew import LEAST_START_SECONDS, LOOK_SECONDS, RESTART_SECONDS, START_SECONDS, Crew
from kalavai_nb.lm.member import Member
from kalavai_nb.lm.seating import Place, seat
from kalavai_nb.lm.settings import Settings, StageFacts
from kalavai_nb.lm.watch import Watch
from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.shortfall import DoesNotFit
from kalavai_nb.planner.split import Split
from kalavai_nb.weights.source import ModelSource

SPARES_SECONDS = 5.0
MOMENT_SECONDS = 0.05

# hears the next thing that comes, waiting for it so long; raises where the ring is to end
Hear = Callable[[float], None]


class _Broken(Exception):
    """A member died while the ring was brought up: begin again with those that are left."""


class Formation:
    """Who has which layers. For the thread of the ring."""

    def __init__(
        self, crew: Crew, source: ModelSource, shape: ModelShape, settings: Settings, watch: Watch, hear: Hear
    ) -> None:
        self._crew, self._source, self._shape, self._settings = crew, source, shape, settings
        self._watch, self._hear = watch, hear
        self.places: list[Place] = []
        self.split: Split | None = None
        self.epoch = 0
        self.is_linked = False
        self.state = "starting"
        self._look_for_spares_at = 0.0

    @property
    def first(self) -> Member:
        """Where requests go."""
        return self.places[0].member

    @property
    def seated(self) -> list[Member]:
        return [place.member for place in self.places]

    @property
    def spares(self) -> list[Member]:
        """Members without a stage."""
        seated = {member.name for member in self.seated}
        return [member for member in list(self._crew.members.values()) if member.name not in seated]

    @property
    def stages(self) -> list[StageFacts]:
        return [
            StageFacts(
                place.member.device,
                place.member.pid,
                place.layers,
                place.member.memory.get("weights_bytes", 0),
                place.member.memory.get("kv_bytes", 0),
                place.member.step_seconds,
            )
            for place in self.places
        ]

    @property
    def is_whole(self) -> bool:
        """Whether tokens can come of it."""
        return self.is_linked and not any(member.is_dead for member in self.seated)

    # bringing up

    def form(self) -> None:
        """From leased devices to a ring that runs."""
        while True:
            members = list(self._crew.members.values())
            try:
                self._until(lambda m: m.is_ready, members, START_SECONDS, "start")
                self._probe(members)
                self.places, self.split = seat(self._shape, members, self._settings, len(members))
                self._bring_up()
                return
            except _Broken:
                self._replace_unseated(members)

    def mend(self, fault: str) -> str:
        """Until the ring runs again; what happened, in a sentence. Raises ModelLost where nothing can take a place."""
        started = time.monotonic()
        self.is_linked = False
        # a connection ends at once; how the process behind it ended is told a moment later
        self._hear_for(MOMENT_SECONDS)
        gone: dict[str, str] = {}
        while True:
            # what comes in its place and ends too says less of why
            gone = {str(member): member.death for member in self.seated if member.is_dead} | gone
            try:
                self._replace(started + self._settings.wait_seconds)
                self._bring_up()
                break
            except _Broken:
                continue
            except ModelLost as error:
                deaths = "; ".join(f"{device} {why}" for device, why in gone.items())
                raise ModelLost(f"{error} What was lost: {deaths or fault}.") from None
        lost = "; ".join(f"{device} {why}" for device, why in gone.items()) or fault or "a connection broke"
        where = ", ".join(map(str, self.seated))
        return f"{lost}; went on after {time.monotonic() - started:.1f} s, on {where}"

    def _probe(self, members: list[Member]) -> None:
        self.state = "measuring"
        manifest, dtype = self._source.manifest(), self._settings.dtype
        for member in members:
            member.order("probe", manifest=manifest, dtype=dtype, device=member.device.torch_name)
        self._until(lambda m: m.seconds_per_layer is not None, members, START_SECONDS, "measure its speed")
        if _are_apart(members):
            routes = self._crew.routes
            routes.look()
            for member in members:
                peers = {other.name: routes.between(member, other) for other in members if other is not member}
                member.order("reach", peers=peers)
            self._until(lambda m: m.reached is not None, members, START_SECONDS, "measure the ways to others")

    def _bring_up(self) -> None:
        """Load what is not loaded, and link all. Raises _Broken."""
        self.state = "loading"
        wanted = {place.member.name: place.layers for place in self.places}
        for place in self.places:
            # one that is loading these already, since somebody else died meanwhile, is not told again
            if place.layers not in (place.member.layers, place.member.loading):
                self._order_load(place)
        self._until(lambda member: member.layers == wanted[member.name], self.seated, None, "load its layers")
        self._link()
        self.state, self.is_linked = "running", True
        self._watch.begin()

    def _order_load(self, place: Place) -> None:
        place.member.layers, place.member.loading = None, place.layers
        start, end = place.layers
        place.member.order(
            "load",
            manifest=self._source.manifest(),
            start=start,
            end=end,
            dtype=self._settings.dtype,
            quant=self._settings.quant,
            device=place.member.device.torch_name,
        )

    def _link(self) -> None:
        self.epoch += 1
        seated, routes = self.seated, self._crew.routes
        if _are_apart(seated):
            routes.look()
        for member, after in zip(seated, [*seated[1:], seated[0]], strict=True):
            member.order(
                "link",
                epoch=self.epoch,
                next=routes.between(member, after) if len(seated) > 1 else None,
                stages=len(seated),
                max_batch=self._settings.max_batch,
                piece_tokens=self._settings.piece_tokens,
            )
        self._until(lambda member: member.epoch == self.epoch, seated, START_SECONDS, "connect to the next")

    def hear_broken(self, member: Member, why: str) -> None:
        """A link of this epoch is gone. ``why`` says why the member could not even connect to the one after it."""
        self.is_linked = False
        if why:
            seated = self.seated
            after = seated[(seated.index(member) + 1) % len(seated)]
            after.end_as(f"cannot be reached by the stage on {member} ({why}); is a firewall between them?")

    def _until(
        self, is_done: Callable[[Member], bool], members: list[Member], seconds: float | None, what: str
    ) -> None:
        """Hear what comes until that is so for all. Raises _Broken where one of them dies instead."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not all(map(is_done, members)):
            self._hear(LOOK_SECONDS)
            if any(member.is_dead for member in members):
                raise _Broken
            if deadline and time.monotonic() > deadline:
                for member in [member for member in members if not is_done(member)]:
                    member.end_as(f"did not {what} within {seconds:.0f} s")
                raise _Broken
            self._crew.ask_the_silent(self._watch, members)

    def _hear_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._hear(min(left, LOOK_SECONDS))

    # replacing

    def _replace_unseated(self, members: list[Member]) -> None:
        """Somebody died before there were places: the same device again, or the load fails with how it died."""
        for dead in [member for member in members if member.is_dead]:
            if self._crew.again(dead) is None:
                raise ModelError(f"{self._source.name} could not be loaded: {dead} {dead.death}.")

    def _replace(self, deadline: float) -> None:
        """Give every stage a living member: a spare, a new process on the same device, other devices, fewer of them."""
        self.state = "mending"
        for place in [place for place in self.places if place.member.is_dead]:
            dead = place.member
            ready = [spare for spare in self.spares if spare.is_ready and place.will_do(spare)]
            if ready:
                place.member = ready[0]
                self._crew.promote(ready[0])
                # its device may be leased again, as a spare
                self._crew.give_up(dead)
                self._look_for_spares_at = 0.0
            elif again := self._crew.again(dead):
                place.member = again
                self._wait_for_start(again, deadline)
        if any(member.is_dead for member in self.seated):
            self._seat_anew(deadline)

    def _wait_for_start(self, member: Member, deadline: float) -> None:
        """Until it can be given layers. One that does not start gives its device back: it may be granted again."""
        patience = max(LEAST_START_SECONDS, min(RESTART_SECONDS, deadline - time.monotonic()))
        try:
            self._until(lambda each: each.is_ready, [member], patience, "start")
        except _Broken:
            self._crew.give_up(member)

    def _seat_anew(self, deadline: float) -> None:
        """Share the layers out among those who are there, waiting for more devices where they cannot hold them."""
        while True:
            for member in [m for m in self._crew.members.values() if not m.is_dead and not m.is_ready]:
                self._wait_for_start(member, deadline)
            there = [member for member in self._crew.members.values() if member.is_ready]
            try:
                self.places, self.split = seat(self._shape, there, self._settings, None)
                self._crew.stop_asking()
                return
            except DoesNotFit as error:
                shortfall = error
            self.state = f"waiting for devices: {shortfall} {self._crew.waits_for}".strip()
            if time.monotonic() > deadline:
                raise ModelLost(
                    f"{self._source.name} lost devices, and nothing took their place within "
                    f"{self._settings.wait_seconds:.0f} s: {shortfall} Load it again when there are enough."
                )
            self._crew.ask_for_device()
            self._hear_for(2 * LOOK_SECONDS)

    def keep_spares(self) -> None:
        """Have as many spares as were asked for, as far as devices are free."""
        now = time.monotonic()
        if now < self._look_for_spares_at:
            return
        self._look_for_spares_at = now + SPARES_SECONDS
        self._crew.release_left()
        for dead in [spare for spare in self.spares if spare.is_dead]:
            self._crew.again(dead)
        spares = self.spares
        # devices that came while others were lost, and turned out not to be needed
        for spare in spares[self._settings.spares :]:
            self._crew.dismiss(spare)
        if len(spares) < self._settings.spares:
            self._crew.lease_spares(self._settings.spares - len(spares))

    def give_back(self, lease: str) -> list[str]:
        """Give a spare back, since somebody else waits for its device; says so, if it is one."""
        spares = [spare for spare in self.spares if spare.lease == lease]
        for spare in spares:
            self._crew.dismiss(spare)
        return [f"gave the spare {spare} back, since somebody else waits for it" for spare in spares]


def _are_apart(members: list[Member]) -> bool:
    return len({member.device.machine for member in members}) > 1
