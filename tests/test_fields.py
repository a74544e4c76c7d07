"""What people and other versions say: junk is as if it had not been said, and costs nobody anything."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_snapshot import SNAPSHOT

from kalavai_nb.fields import MOST_CHARACTERS, made, text
from kalavai_nb.history import BINS, Record
from kalavai_nb.overview import Overview
from kalavai_nb.reading import Machine, Reading
from kalavai_nb.snapshot import Cell, ModelState, Snapshot, SweepState
from kalavai_nb.state import Device, Need
from kalavai_nb.table import snapshot_html, snapshot_text

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=6,
)
CARD = Device("GPU-0", 0, "cuda", "RTX 4090", "box", "box-1", 2**34)


def fields_of(noun: type) -> list[str]:
    return list(noun.__dataclass_fields__)


@pytest.mark.parametrize("noun", [Cell, SweepState, ModelState], ids=lambda noun: noun.__name__)
@given(data=st.data())
def test_whatever_an_owner_says_everybody_else_sees_the_pool(noun: type, data: st.DataObject) -> None:
    said = {name: data.draw(JUNK, name) for name in [*fields_of(noun), "unheard of"]}
    kind = {Cell: "cells", SweepState: "sweeps", ModelState: "models"}[noun]
    overview = Overview()
    overview.join(CARD, 0.0)
    overview.tell("ada", {kind: [said]})
    snapshot = overview.snapshot("id", "lab", (CARD,), (), (), {"ada": "ada.ipynb"}, 1.0)
    again = Snapshot.from_fields(snapshot.to_fields())
    assert again.to_dict() == snapshot.to_dict()
    assert len(snapshot_text(again)) + len(snapshot_html(again)) < 20_000


@given(said=st.dictionaries(st.sampled_from(fields_of(Reading)), JUNK))
def test_whatever_a_worker_reads_is_a_reading_and_makes_history(said: dict[str, Any]) -> None:
    reading = Reading.from_fields(said)
    record = Record(0.0)
    record.add(reading, 1.0)
    history = record.history(25.0)
    assert len(history.utilisation) == len(history.memory) == BINS
    assert all(-1 <= each <= 100 for each in (*history.utilisation, *history.memory))


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", None, True, [0.5]])
def test_a_number_that_is_none_is_not_known(value: Any) -> None:
    assert Reading.from_fields({"utilisation": value, "note": "odd", "fan_speed": 3}) == Reading(note="odd")


def test_texts_are_one_line_that_can_be_sent_and_printed() -> None:
    assert text("photo \udcff.png") == "photo  .png"
    assert text("\x1b[2Jowned\nby\u202eme") == " [2Jowned by me"
    assert len(text("x" * 10**6)) == MOST_CHARACTERS
    assert text("Größe ≥ 3 · 模型") == "Größe ≥ 3 · 模型"


def test_what_is_needed_has_to_be_there() -> None:
    with pytest.raises(TypeError):
        made(Need, {"owner": "ada", "count": "two"})
    assert made(Need, {"owner": "ada", "count": 2, "wakes": ["lease-1"], "colour": "red"}) == Need(
        "ada", 2, wakes=("lease-1",)
    )


def test_a_head_of_another_version_is_understood_as_far_as_can_be() -> None:
    fields = {**SNAPSHOT.to_fields(), "racks": [1, 2]}
    assert Snapshot.from_fields(fields) == SNAPSHOT
    for missing in ("alerts", "history", "machines", "silent_seconds", "models"):
        assert missing in fields
        less = Snapshot.from_fields({name: value for name, value in fields.items() if name != missing})
        assert not getattr(less, missing)
        assert less.devices == SNAPSHOT.devices


def test_a_clock_that_is_set_back_an_hour_goes_on_from_there() -> None:
    record = Record(7200.0)
    busy = Reading(utilisation=1.0)
    for second in range(7200, 7260):
        record.add(busy, second)
    for second in range(3600, 3640):
        record.add(Reading(utilisation=0.0), second)
    assert record.history(3640.0).utilisation[-3:] == (0, 0, 0)


def test_machines_are_forgotten_with_their_devices() -> None:
    overview = Overview()
    overview.join(CARD, 0.0)
    for number in range(100):
        overview.hear("GPU-0", Reading(utilisation=0.5), Machine(f"box-{number}", "box"), 1.0)
    [machine] = overview.snapshot("id", "lab", (CARD,), (), (), {}, 1.0).machines
    assert machine.id == CARD.machine
