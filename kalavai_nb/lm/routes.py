"""How stages are reached: by each other, and by the notebook that they belong to."""

from __future__ import annotations

import ssl

from kalavai_nb.engine import Engine
from kalavai_nb.lm.member import Member
from kalavai_nb.roads import DIRECT_SECONDS, Post, Way, by_pair, first_reached
from kalavai_nb.state import Link, machine_id
from kalavai_nb.worker.stage.door import round_trip_seconds


class Routes:
    """Ways to stages, best first. For the thread of the ring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._links: dict[tuple[str, str], Link] = {}
        # by machine: its address at which this notebook has reached a stage, empty where there is none
        self._reached: dict[str, str] = {}

    def look(self) -> None:
        """Ask the head how machines reach each other now."""
        self._links = by_pair(self._engine.snapshot().links)

    def between(self, source: Member, target: Member) -> tuple[list[Way], str]:
        """From stage to stage, as `look` has seen them; and the key that opens the target's door."""
        return target.post.ways_from(source.device.machine, self._links), target.key

    def home(self, member: Member, context: ssl.SSLContext) -> list[Way]:
        """From this notebook."""
        post, here = member.post, machine_id()
        if post.machine == here or not post.addresses or (here, post.machine) in self._links:
            return post.ways_from(here, self._links)
        if post.machine not in self._reached:
            self._reached[post.machine] = self._try(post, context, member.key)
        relayed = post.ways_from("", {}) if post.relay else []
        found = self._reached[post.machine]
        return [*([(found, post.port)] if found else []), *relayed] or post.ways_from("", {})

    def _try(self, post: Post, context: ssl.SSLContext, key: str) -> str:
        """The address of its machine at which this very stage answers; a machine elsewhere may have the same."""

        def reach(address: str) -> float:
            return round_trip_seconds([(address, post.port)], context, key, 0, DIRECT_SECONDS)

        return next(iter(first_reached(post.addresses, reach, DIRECT_SECONDS)), "")
