"""What the head makes of readings and of what owners say: pure, with a clock of our own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kalavai_nb.history import BINS, NONE
from kalavai_nb.overview import EVENTS, LOST_SECONDS, MOST_ACTIVITIES, Overview
from kalavai_nb.reading import Machine, Reading
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device, Lease

GIB = 2**30
BOX = Machine("box-1", "box", 8, 32 * GIB, 8 * GIB, 0.5)
CARD = Device("GPU-0", 0, "cuda", "RTX 4090", "box", "box-1", 24 * GIB)
OTHER = replace(CARD, id="GPU-1", index=1)
BUSY, IDLE = Reading(12 * GIB, 24 * GIB, 0.8), Reading(12 * GIB, 24 * GIB, 0.0)
CELL = {"id": "c", "number": 3, "text": "train()", "ranks": 1, "devices": ["GPU-0"], "since": 0.0}


def overview(*devices: Device) -> Overview:
    new = Overview()
    for device in devices:
        new.join(device, 0.0)
    return new


def look(overview: Overview, now: float, *devices: Device, **known: Any) -> Snapshot:
    return overview.snapshot("id", "lab", devices, known.get("leases", ()), (), {"ada": "ada.ipynb"}, now)


def alerts(snapshot: Snapshot) -> list[str]:
    return [alert.text for alert in snapshot.alerts]


def test_a_reading_is_in_the_snapshot_with_its_machine() -> None:
    seen = overview(CARD)
    assert look(seen, 0.5, CARD).readings == {}
    seen.hear("GPU-0", BUSY, BOX, 1.0)
    snapshot = look(seen, 1.5, CARD)
    assert (snapshot.readings, snapshot.machines, snapshot.id) == ({"GPU-0": BUSY}, (BOX,), "id")
    seen.hear("GPU-9", BUSY, BOX, 1.0)
    assert set(look(seen, 1.5, CARD).readings) == {"GPU-0"}, "a device that nobody knows"


def test_history_is_the_mean_of_ten_seconds_and_only_what_is_over() -> None:
    seen = overview(CARD)
    for second in range(10):
        seen.hear("GPU-0", BUSY if second % 2 else IDLE, BOX, second)
    assert set(look(seen, 9.9, CARD).history["GPU-0"].utilisation) == {NONE}
    history = look(seen, 10.0, CARD).history["GPU-0"]
    assert (history.utilisation[-1], history.memory[-1], len(history.utilisation)) == (40, 50, BINS)


def test_history_has_gaps_where_nothing_was_known() -> None:
    seen = overview(CARD)
    seen.hear("GPU-0", Reading(note="GPU is lost"), BOX, 1.0)
    seen.hear("GPU-0", BUSY, BOX, 31.0)
    assert look(seen, 40.0, CARD).history["GPU-0"].utilisation[-4:] == (NONE, NONE, NONE, 80)
    assert set(look(seen, 1e9, CARD).history["GPU-0"].utilisation) == {NONE}, "a day asleep"


def test_a_clock_that_goes_back_loses_nothing() -> None:
    seen = overview(CARD)
    seen.hear("GPU-0", BUSY, BOX, 100.0)
    seen.hear("GPU-0", BUSY, BOX, 50.0)
    assert look(seen, 50.0, CARD).readings["GPU-0"] == BUSY


def test_silence_is_told_and_ends() -> None:
    seen = overview(CARD, OTHER)
    for device in (CARD, OTHER):
        seen.hear(device.id, BUSY, BOX, 1.0)
    assert look(seen, 3.5, CARD, OTHER).silent_seconds == {}
    seen.hear("GPU-1", BUSY, BOX, 12.0)
    one = look(seen, 13.5, CARD, OTHER)
    assert (one.silent_seconds, alerts(one)) == ({"GPU-0": 12}, ["no news from box cuda:0 for 12 s"])
    assert alerts(look(seen, 20.0, CARD, OTHER)) == ["no news from box for 8 s"], "a whole machine is told of once"
    seen.hear("GPU-0", BUSY, BOX, 21.0)
    seen.hear("GPU-1", BUSY, BOX, 21.0)
    assert alerts(look(seen, 21.5, CARD, OTHER)) == []


def test_a_lost_device_is_told_of_until_it_is_back_or_forgotten() -> None:
    seen = overview(CARD)
    seen.hear("GPU-0", BUSY, BOX, 10.0)
    seen.lose(CARD, 20.0)
    assert alerts(look(seen, 21.0)) == ["box cuda:0 was lost: its worker is gone"]
    assert [event.text for event in look(seen, 21.0).events] == ["box cuda:0 joined", "box cuda:0 was lost"]
    seen.join(CARD, 25.0)
    back = look(seen, 25.0, CARD)
    assert alerts(back) == []
    assert back.history["GPU-0"].utilisation[-1] == 80, "its history is still there"
    seen.lose(CARD, 30.0)
    assert alerts(look(seen, 30.0 + LOST_SECONDS)) == []


@pytest.mark.parametrize("running", [True, False])
def test_idle_but_held_is_told_after_five_minutes(running: bool) -> None:
    lease = Lease("l", "ada", "ada.ipynb", "session", ("GPU-0",), 1.0, running, 100.0, "lm")
    seen = overview(CARD)
    for second in range(0, 500, 2):
        seen.hear("GPU-0", BUSY if second < 90 else IDLE, BOX, second)
    assert alerts(look(seen, 399.0, CARD, leases=(lease,))) == []
    assert alerts(look(seen, 460.0, CARD, leases=(lease,))) == [
        "box cuda:0 is held by ada.ipynb, lm, and idle for 6 min"
    ]
    assert alerts(look(seen, 460.0, CARD)) == [], "nobody holds it"
    seen.hear("GPU-0", BUSY, BOX, 461.0)
    assert alerts(look(seen, 462.0, CARD, leases=(lease,))) == []


def test_utilisation_that_nobody_knows_is_not_idle() -> None:
    lease = Lease("l", "ada", "ada.ipynb", "session", ("GPU-0",), 1.0, True, 0.0)
    seen = overview(CARD)
    for second in range(0, 500, 2):
        seen.hear("GPU-0", Reading(GIB, 24 * GIB), BOX, second)
    assert alerts(look(seen, 499.0, CARD, leases=(lease,))) == []


def test_nearly_out_of_memory_is_told() -> None:
    seen = overview(CARD)
    seen.hear("GPU-0", Reading(int(23.5 * GIB), 24 * GIB, 0.9), BOX, 1.0)
    assert alerts(look(seen, 1.5, CARD)) == ["box cuda:0 is nearly out of memory: 98% of it is in use"]


def test_a_gpu_that_says_nothing_is_told() -> None:
    seen = overview(CARD)
    seen.hear("GPU-0", Reading(note="GPU is lost"), BOX, 1.0)
    assert alerts(look(seen, 1.5, CARD)) == ["box cuda:0 does not answer: GPU is lost"]
    seen.hear("GPU-0", BUSY, BOX, 2.0)
    assert alerts(look(seen, 2.5, CARD)) == []


def test_what_owners_run_is_theirs_and_goes_with_them() -> None:
    seen = overview(CARD)
    seen.tell("ada", {"cells": [{**CELL, "owner": "bob"}]})
    [cell] = look(seen, 1.0, CARD).cells
    assert (cell.owner, cell.devices) == ("ada", ("GPU-0",))
    seen.tell("ada", {})
    assert look(seen, 1.0, CARD).cells == ()
    seen.tell("ada", {"cells": [CELL]})
    seen.forget("ada")
    assert look(seen, 1.0, CARD).cells == ()


def test_what_an_owner_says_wrongly_is_not_shown() -> None:
    seen = overview(CARD)
    seen.tell("ada", {"cells": [{"id": "x"}, {**CELL, "colour": "red"}, CELL] + [CELL] * 1000})
    assert len(look(seen, 1.0, CARD).cells) == MOST_ACTIVITIES - 1


def test_events_are_the_last_ones() -> None:
    seen = overview()
    for number in range(50):
        seen.note("lost", f"{number}", float(number))
    assert [event.text for event in look(seen, 50.0).events] == [str(number) for number in range(50 - EVENTS, 50)]
