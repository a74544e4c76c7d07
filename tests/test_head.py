"""A head that stood still itself, as on a laptop that slept, misses no worker for that."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from distributed import Scheduler

from kalavai_nb.head import door
from kalavai_nb.head.door import GuardedScheduler


def test_a_head_that_slept_hears_workers_before_it_looks_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = 1000.0, list[float]()

    async def look(_: Scheduler) -> None:
        looks.append(now)

    monkeypatch.setattr(Scheduler, "check_worker_ttl", look)
    monkeypatch.setattr(door, "time", SimpleNamespace(time=lambda: now))
    scheduler = object.__new__(GuardedScheduler)
    for seconds in (0, 1, 2, 3, 4, 5, 6, 60, 61, 64, 65, 66):
        now = 1000.0 + seconds
        asyncio.run(scheduler.check_worker_ttl())
    assert looks == [1005, 1006, 1065, 1066]
