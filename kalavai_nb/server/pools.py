"""All pools of this user as a browser gets them, put together from what their owners have published."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from kalavai_nb.registry.reader import Reader
from kalavai_nb.server.owners import Owner, Owners

State = dict[str, Any]


class Pools:
    """The pools that are there now. Used by one thread at a time; ``say`` gets sentences for the log."""

    def __init__(
        self, say: Callable[[str], None], path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reader = Reader(say, path)
        self._owners = Owners(clock)
        self._now: list[Owner] = []

    def look(self) -> State:
        """The state of all pools. Takes away what owners that have ended left behind."""
        self._now, over = self._owners.judge(self.reader.look())
        for entry in over:
            self.reader.remove(entry)
        return state_of(self._now)

    def owner(self, pool: str, owner: str) -> Owner | None:
        """Who that was at the last look."""
        found = [each for each in self._now if (each.published.pool, each.published.owner) == (pool, owner)]
        return min(found, key=lambda each: each.worth, default=None)


def state_of(owners: Iterable[Owner]) -> State:
    """One entry for each pool: the freshest snapshot of an owner that is there, and all owners."""

    def pool_id(owner: Owner) -> str:
        return owner.published.pool

    pools = {id: _pool(list(group)) for id, group in groupby(sorted(owners, key=pool_id), pool_id)}
    return {"version": 1, "pools": pools}


def summary_of(state: State) -> dict[str, Any]:
    """All pools in five numbers; ``utilisation`` (of GPUs, where there are some) is missing where none is known."""
    pools = [pool for pool in state["pools"].values() if not _has_ended(pool)]
    # a device may be in two pools
    # those that somebody vouches for come last, since of a device in two pools the last is taken
    live = [pool for pool in pools if any(owner["link"] == "live" for owner in pool["owners"].values())]
    devices, now = _devices(pools), _devices(live)
    devices |= now
    gpus = [device for device in devices.values() if device["kind"] != "cpu"]
    known = [
        device["reading"]["utilisation"]
        for device in [each for each in now.values() if not gpus or each["kind"] != "cpu"]
        if "utilisation" in device.get("reading", {}) and "silent_seconds" not in device
    ]
    return {
        "pools": len(pools),
        "devices": len(devices),
        "gpus": len(gpus),
        **({"utilisation": round(statistics.fmean(known), 4)} if known else {}),
        "alerts": sum(len(pool["snapshot"]["alerts"]) for pool in live),
    }


def _devices(pools: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each device once, in however many pools it is."""
    return {(device["machine"], id): device for pool in pools for id, device in pool["snapshot"]["devices"].items()}


def _pool(owners: list[Owner]) -> dict[str, Any]:
    # of two with one id, the better one is shown: it comes last
    owners.sort(key=lambda owner: owner.worth, reverse=True)
    shown = {owner.published.owner: _shown(owner) for owner in owners}
    return {"snapshot": owners[-1].published.snapshot, "owners": shown}


def _shown(owner: Owner) -> dict[str, Any]:
    published = owner.published
    return {
        "label": published.label,
        "pid": published.pid,
        "host": published.host,
        "link": owner.link,
        "can_invite": published.can_invite,
        **({"reason": published.reason} if owner.link == "lost" else {}),
        **({"silent_seconds": owner.silent_seconds} if owner.link == "silent" else {}),
    }


def _has_ended(pool: dict[str, Any]) -> bool:
    return all(owner["link"] == "ended" for owner in pool["owners"].values())
