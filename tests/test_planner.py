"""The planner: which layers go where, how many devices a model needs, and what the years to come ask."""

from __future__ import annotations

import json
import time
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kalavai_nb.planner.sources as sources
from kalavai_nb.errors import MissingExtra, ModelError, OptionError
from kalavai_nb.planner.cards import read_devices
from kalavai_nb.planner.demand import Demand
from kalavai_nb.planner.family import llama_like
from kalavai_nb.planner.growth import PRESETS
from kalavai_nb.planner.plan import plan
from kalavai_nb.planner.quants import OTHERS, QUANTS, read_quant
from kalavai_nb.planner.ring import ring_seconds
from kalavai_nb.planner.rows import at_least
from kalavai_nb.planner.seats import Seat
from kalavai_nb.planner.shape import LayerShape, ModelShape
from kalavai_nb.planner.shortfall import DoesNotFit
from kalavai_nb.planner.sources import shape_of
from kalavai_nb.planner.split import Split, split
from kalavai_nb.state import Device

GIB, MIB = 2**30, 2**20


def tiny(*layer_params: int, ends: int = MIB, tied: bool = False) -> ModelShape:
    """A model whose activations take next to nothing."""
    layers = tuple(LayerShape(params, params, 16) for params in layer_params)
    return ModelShape("tiny", layers, ends, 64, ends, tied, 8, 64)


def seats(*mib: float, **fields: float) -> list[Seat]:
    return [Seat(f"d{at}", int(size * MIB / 0.9) + 1, **fields) for at, size in enumerate(mib)]


# property tests

layer_sizes = st.lists(st.integers(1, 6).map(lambda n: n * MIB), min_size=1, max_size=6)
rooms = st.lists(st.integers(4, 40), min_size=1, max_size=4)
speeds = st.lists(st.one_of(st.none(), st.floats(0.001, 0.1)), min_size=4, max_size=4)
distances = st.lists(st.floats(0, 0.2), min_size=16, max_size=16)


def given_case(sizes: list[int], mib: list[int], paces: list[float | None]) -> tuple[ModelShape, list[Seat]]:
    there = [Seat(f"d{at}", room * MIB, paces[at]) for at, room in enumerate(mib)]
    return tiny(*sizes), there


def all_cuts(layers: int, count: int) -> list[list[tuple[int, int]]]:
    return [list(pairwise([0, *inner, layers])) for inner in combinations(range(1, layers), count - 1)]


@given(layer_sizes, rooms, speeds, distances, st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_split_covers_all_layers_in_order_within_memory_on_the_fewest_devices_in_the_cheapest_way(
    sizes: list[int], mib: list[int], paces: list[float | None], far: list[float], measured: bool
) -> None:
    shape, there = given_case(sizes, mib, paces)
    rtt = [[0.0 if a == b else far[4 * min(a, b) + max(a, b)] for b in range(len(there))] for a in range(len(there))]
    demand = Demand(shape, read_quant(None, shape), 32, 1)
    options = {
        (order, tuple(cut))
        for count in range(1, len(there) + 1)
        for order in permutations(range(len(there)), count)
        for cut in all_cuts(len(sizes), count)
        if all(demand.fits(*ends, there[at].usable_bytes) for at, ends in zip(order, cut, strict=True))
    }
    try:
        found = split(shape, there, max_len=32, rtt_seconds=rtt if measured else None)
    except DoesNotFit:
        assert not options
        return
    assert [(stage.start, stage.end) for stage in found.stages] in all_cuts(len(sizes), len(found.stages))
    assert all(stage.memory_bytes <= stage.device.usable_bytes for stage in found.stages)
    assert len(found.stages) == min(len(order) for order, _ in options)
    assert {stage.device for stage in found.stages} | set(found.spares) == set(there)
    if all(pace is not None for pace in paces[: len(there)]):
        best = min(
            cost(demand, there, order, cut, rtt if measured else None)
            for order, cut in options
            if len(order) == len(found.stages)
        )
        order = [there.index(stage.device) for stage in found.stages]
        cut = [(stage.start, stage.end) for stage in found.stages]
        assert cost(demand, there, order, cut, rtt if measured else None) <= best * (1 + 1e-4) + 1e-9


def cost(demand: Demand, there: list[Seat], order, cut, rtt) -> float:  # type: ignore[no-untyped-def]
    slowest = max(
        demand.work(*ends) / demand.mean_work * (there[at].seconds_per_layer or 0)
        for at, ends in zip(order, cut, strict=True)
    )
    return len(order) * slowest + ring_seconds(order, rtt)


@given(st.integers(20, 60), st.lists(st.tuples(st.integers(6, 20), st.floats(0.001, 0.05)), min_size=9, max_size=14))
@settings(max_examples=25, deadline=None)
def test_no_boundary_can_be_moved_to_speed_up_many_devices(layers: int, devices: list[tuple[int, float]]) -> None:
    shape = tiny(*[MIB] * layers)
    there = [Seat(f"d{at}", mib * MIB, pace) for at, (mib, pace) in enumerate(devices)]
    demand = Demand(shape, read_quant(None, shape), 32, 1)
    try:
        found = split(shape, there, max_len=32)
    except DoesNotFit:
        assert sum(seat.usable_bytes for seat in there) < demand.room(0, layers).total_bytes + 2 * MIB * len(there)
        return
    edges = [0, *[stage.end for stage in found.stages]]
    assert edges[-1] == layers
    assert all(start < end for start, end in pairwise(edges))
    worst = slowest_stage(found)
    for at in range(1, len(edges) - 1):
        for step in (-1, 1):
            moved = [*edges[:at], edges[at] + step, *edges[at + 1 :]]
            pieces = list(zip(pairwise(moved), found.stages, strict=True))
            if all(
                start < end and demand.fits(start, end, stage.device.usable_bytes) for (start, end), stage in pieces
            ):
                seconds = [
                    demand.work(*ends) / demand.mean_work * (stage.device.seconds_per_layer or 0)
                    for ends, stage in pieces
                ]
                assert max(seconds) >= worst * (1 - 1e-5)


def slowest_stage(found: Split) -> float:
    return max(stage.seconds_per_token or 0.0 for stage in found.stages)


# splits by example


def test_one_device_is_enough_where_one_holds_it_and_the_fastest_is_taken() -> None:
    there = [Seat("slow", GIB, 0.02), Seat("fast", GIB, 0.01), Seat("small", MIB, 0.001)]
    found = split(tiny(*[MIB] * 4), there)
    assert [stage.device.name for stage in found.stages] == ["fast"]
    assert [seat.name for seat in found.spares] == ["slow", "small"]
    assert found.ring_seconds == 0


def test_a_number_of_stages_is_exactly_that() -> None:
    found = split(tiny(*[MIB] * 4), seats(900, 900, 900), stages=2)
    assert [(stage.start, stage.end) for stage in found.stages] == [(0, 2), (2, 4)]
    with pytest.raises(ModelError, match=r"stages=5 cannot be: tiny has 4 layers"):
        split(tiny(*[MIB] * 4), seats(*[900] * 6), stages=5)
    with pytest.raises(ModelError, match=r"stages=3 was asked for, but there are 2 devices"):
        split(tiny(*[MIB] * 4), seats(900, 900), stages=3)


def test_a_device_twice_as_fast_takes_twice_the_layers() -> None:
    there = [Seat("slow", GIB, 0.02), Seat("fast", GIB, 0.01)]
    found = split(tiny(*[4 * MIB] * 30, ends=64), there, stages=2)
    assert {stage.device.name: stage.layers for stage in found.stages} == {"slow": 10, "fast": 20}
    assert slowest_stage(found) == pytest.approx(0.2, rel=1e-3)


def test_a_near_device_is_worth_more_than_a_slightly_faster_one_far_away() -> None:
    there = [Seat("here", 24 * MIB, 0.010), Seat("beside", 24 * MIB, 0.011), Seat("far", 24 * MIB, 0.009)]
    rtt = [[0, 0.001, 0.2], [0.001, 0, 0.2], [0.2, 0.2, 0]]
    found = split(tiny(*[2 * MIB] * 8), there, rtt_seconds=rtt)
    assert {stage.device.name for stage in found.stages} == {"here", "beside"}
    assert found.seconds_per_token == pytest.approx(0.001 + sum(s.seconds_per_token or 0 for s in found.stages))


def test_a_tied_head_costs_nothing_on_one_device_and_its_size_on_the_last_of_two() -> None:
    tied = tiny(*[MIB] * 4, ends=8 * MIB, tied=True)
    alone, two = split(tied, seats(100)), split(tied, seats(100, 100), stages=2)
    assert alone.stages[0].weights_bytes == 2 * tied.params
    assert sum(stage.weights_bytes for stage in two.stages) == 2 * (tied.params + 8 * MIB)


def test_splits_are_the_same_each_time() -> None:
    there = [Seat(f"d{at}", (20 + at % 3) * MIB, 0.01) for at in range(12)]
    assert len({split(tiny(*[2 * MIB] * 20), there) for _ in range(3)}) == 1


def test_what_does_not_fit_says_by_how_much_and_what_would_do() -> None:
    with pytest.raises(DoesNotFit, match=r"MiB find no room") as caught:
        split(tiny(*[10 * MIB] * 4), seats(50))
    assert str(caught.value) == (
        "tiny at bf16 does not fit on 1 device: 42 MiB find no room. With quant='int8' (8.5008 bits per weight), or "
        "with 1 more device of 56 MiB free, it would fit."
    )
    assert (caught.value.fitting_quant, caught.value.more_devices) == ("int8", 1)
    split(tiny(*[10 * MIB] * 4), seats(50), quant="int8")
    split(tiny(*[10 * MIB] * 4), seats(50, 50))


def test_a_layer_larger_than_any_device_is_helped_by_no_number_of_them() -> None:
    with pytest.raises(DoesNotFit, match="No quantisation and no number of such devices") as caught:
        split(tiny(800 * MIB), seats(50, 50))
    assert (caught.value.fitting_quant, caught.value.more_devices) == (None, None)


def test_bits_per_weight_are_those_of_files() -> None:
    assert [quant.bits for quant in QUANTS] == sorted((quant.bits for quant in QUANTS), reverse=True)
    shape = tiny(MIB)
    assert read_quant("q8_0", shape).name == "int8"
    assert read_quant("int4", shape).name == "Q4_K_M"
    with pytest.raises(ModelError, match="Did you mean 'Q4_K_M'"):
        read_quant("Q4_KM", shape)


# whole plans

# cards needed by size, weights × 1.2 over 90 % of memory: the reference of the field notes
SIZES = (8, 12, 16, 24, 40, 48, 80)
REFERENCE = {
    ("30B", "bf16"): (10, 7, 5, 4, 2, 2, 1),
    ("30B", "Q8_0"): (6, 4, 3, 2, 2, 1, 1),
    ("30B", "Q6_K"): (5, 3, 3, 2, 1, 1, 1),
    ("30B", "Q4_K_M"): (4, 3, 2, 2, 1, 1, 1),
    ("30B", "Q3_K_S"): (3, 2, 2, 1, 1, 1, 1),
    ("30B", "Q2_K"): (2, 2, 1, 1, 1, 1, 1),
    ("70B", "bf16"): (24, 16, 12, 8, 5, 4, 3),
    ("70B", "Q8_0"): (13, 9, 7, 5, 3, 3, 2),
    ("70B", "Q4_K_M"): (8, 5, 4, 3, 2, 2, 1),
    ("8B", "bf16"): (3, 2, 2, 1, 1, 1, 1),
    ("8B", "Q4_K_M"): (1, 1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize(("model", "quant"), REFERENCE)
def test_memory_alone_asks_for_the_cards_of_the_reference_and_whole_layers_for_some_more(
    model: str, quant: str
) -> None:
    for size, expected in zip(SIZES, REFERENCE[model, quant], strict=True):
        row = plan(model, [size], quant=quant).row
        assert row.at_least == expected
        assert row.devices is not None
        assert expected <= row.devices <= expected * 1.25 + 1


def test_weights_of_70b_are_those_of_the_reference() -> None:
    gigabytes = {quant: plan("70B", quant=quant).row.weights_bytes / 1e9 for quant in ("bf16", "Q8_0", "Q4_K_M")}
    assert gigabytes == pytest.approx({"bf16": 140.0, "Q8_0": 74.4, "Q4_K_M": 42.8}, abs=0.05)


def test_a_plan_that_fits_says_where() -> None:
    made = plan("8B", ["RTX 3060 x2"], years=5)
    assert made.fits
    assert [(stage.start, stage.end) for stage in made.stages] == [(0, 17), (17, 32)]
    assert made.devices_needed["bf16"] == 2
    assert made.devices_needed["int4"] == made.devices_needed["Q4_K_M"] == 1
    with pytest.raises(KeyError):
        made.devices_needed["int3"]


def test_a_plan_that_does_not_fit_says_what_would_and_its_numbers_agree() -> None:
    made = plan("70B", ["RTX 3060"] * 4)
    assert not made.fits
    assert not made.stages
    assert made.shortfall
    assert made.shortfall.fitting_quant == "Q3_K_M"
    assert 4 + (made.shortfall.more_devices or 0) == made.devices_needed["bf16"] == 17
    assert str(made.shortfall) in repr(made).replace("\n  ", " ")
    assert plan("70B", ["RTX 3060"] * 4, quant="auto").quant.name == "Q3_K_M"
    assert plan("70B", ["RTX 3060"] * 17).fits
    assert not plan("70B", ["RTX 3060"] * 16).fits


def test_cards_of_several_sizes_are_packed_together() -> None:
    made = plan("70B", ["RTX 3060 x20", 24, 24, "A100"])
    assert [stage.device.name for stage in made.stages][:3] == ["A100", "24 GB", "24 GB"]
    assert made.split
    assert len(made.split.spares) == 23 - len(made.stages)
    assert sum(stage.layers for stage in made.stages) == 80


def test_no_number_of_devices_is_none() -> None:
    made = plan("405B", [4])
    assert made.devices_needed["bf16"] is None
    assert "none does" in repr(made)


def test_without_devices_cards_of_each_size_are_counted() -> None:
    made = plan("70B", quant="Q4_K_M")
    assert list(made.row.by_size) == list(SIZES)
    assert "no devices were named" in repr(made)
    assert list(made.row.by_size.values()) == [plan("70B", [size], quant="Q4_K_M").row.devices for size in SIZES]


def test_tables_are_frames_and_json() -> None:
    made = plan("30B", ["48GB x2"], years=3)
    table = made.table()
    assert list(table["quant"]) == [quant.name for quant in QUANTS]
    assert table["perplexity_source"].notna().sum() == len(QUANTS) - 1
    record = json.loads(json.dumps(made.to_dict()))
    assert record["fits"] is True
    assert record["stages"][-1]["end"] == record["layers"] == 46
    assert {row["preset"] for row in record["years"]} == set(PRESETS)


def test_every_perplexity_names_its_source_in_what_is_shown() -> None:
    made = plan("8B", [24], quant="Q4_K_S")
    for text in (repr(made), made._repr_html_()):
        assert "+4.83 %¹ / +1.20 %²" in text
        assert "+1.57 %²" in text
        assert "¹ Llama-3-70B, llama.cpp PR 6745, ² Llama-2-70B, llama.cpp" in text.replace("\n  ", " ")
    assert all(quality.source for quant in (*QUANTS, *OTHERS) for quality in quant.qualities)


def test_what_is_shown_has_no_markup_of_a_name() -> None:
    shape = ModelShape("<b>", llama_like(10**9).layers, 10, 10, 10, False, 8, 8)
    assert "<b>:" not in plan(shape, [24])._repr_html_()


def test_tokens_per_second_are_bound_by_memory_and_by_latency() -> None:
    # 4.9 GB of weights on a 4090
    one = plan("8B", ["RTX 4090"], quant="Q4_K_M").row.speed
    assert one
    assert one.tokens_per_second == pytest.approx(1008e9 / (4.8944e9 - 128256 * 4096 * 4.8944 / 8), rel=0.01)
    assert one.prefill_tokens_per_second is None
    far = plan("8B", ["RTX 3060 x2"], rtt_seconds=1.0, link_bits_per_second=8 * 8192.0).row.speed
    assert far
    assert far.tokens_per_second == pytest.approx(1.0, rel=0.1)
    assert far.prefill_tokens_per_second == 1.0


def test_a_measured_layer_counts_more_than_a_table() -> None:
    there = [Seat("a", 24 * 10**9, seconds_per_layer=0.01, bandwidth=1e12)]
    speed = plan("8B", there).row.speed
    assert speed
    assert 1 / (speed.tokens_per_second or 1) == pytest.approx(0.32, rel=0.1)


def test_what_is_assumed_is_said() -> None:
    text = repr(plan("70B", [24, 24])).replace("\n  ", " ")
    for part in ("proportions of a Llama", "90 % of free memory", "360 GB/s", "20 ms", "100 Mbit/s"):
        assert part in text
    told = repr(plan("70B", ["RTX 3060 x2"], rtt_seconds=0.001, link_bits_per_second=1e9))
    assert "20 ms" not in told
    assert "Mbit/s" not in told


def test_plans_are_the_same_each_time_and_fast() -> None:
    began = time.perf_counter()
    plans = [repr(plan("70B", ["RTX 3060 x6", 24], years=5)) for _ in range(3)]
    assert time.perf_counter() - began < 5
    assert len(set(plans)) == 1


# the years to come


def test_the_article_is_reproduced_and_contradicted() -> None:
    made = plan("30B", ["48GB x2"], years=5, preset="article")
    assert made.devices_needed["bf16"] == 2
    assert made.outlook
    assert made.outlook.chosen.devices(2, 5) == 552
    assert PRESETS["article"].ratio(5) == pytest.approx(275.79, abs=0.005)
    text = repr(made).replace("\n  ", " ")
    assert "⌈2 × (4 / 1.3)^5⌉ = ⌈2 × 275.79⌉ = 552" in text
    for part in ("550", "625", "training compute", "parameters grow 2.8 times", "29 to 625 GPUs"):
        assert part in text


def test_presets_give_the_numbers_of_the_field_notes() -> None:
    assert {name: rates.devices(2, 5) for name, rates in PRESETS.items()} == {
        "article": 552,
        "article-text": 625,
        "parameters": 145,
        "compute-optimal": 29,
        "flops": 93,
    }


def test_rates_can_be_ones_own_and_rounding_comes_last() -> None:
    made = plan("8B", [24], years=2, model_growth=2, gpu_growth=1)
    assert made.outlook
    assert (made.outlook.chosen.name, made.outlook.chosen.devices(3, 2)) == ("yours", 12)
    assert made.outlook.chosen.devices(1, 0.5) == 2
    assert plan("8B", [24]).outlook is None


# what cannot be meant


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": ["RTX 9999"]}, "the card 'RTX 9999' is not known"),
        ({"devices": ["RTX 4080 Super Duper x0"]}, "is 0 devices"),
        ({"devices": []}, "devices= is empty"),
        ({"devices": [None]}, "the device None cannot be meant"),
        ({"devices": [0]}, "a device of 0 GB"),
        ({"years": -1}, "years=-1 cannot be meant"),
        ({"preset": "artikel"}, "there is no preset 'artikel'"),
        ({"model_growth": 0}, "model_growth=0 cannot be meant"),
        ({"max_len": 0}, "max_len=0 cannot be meant"),
        ({"overhead": 0.5}, "overhead=0.5 cannot be meant"),
        ({"rtt_seconds": [[0, 1], [1, 0]]}, "one row and column for each of the 1 devices"),
        ({"rtt_seconds": -1}, "rtt_seconds= cannot be meant"),
        ({"link_bits_per_second": 0}, "link_bits_per_second=0 cannot be meant"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence.replace("[", r"\[")):
        plan("8B", **{"devices": [24], **options})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RTX 3060 x2, 24GB", [("RTX 3060", 12), ("RTX 3060", 12), ("24 GB", 24)]),
        ("2x rtx3060ti", [("RTX 3060 Ti", 8)] * 2),
        ("NVIDIA A100-SXM4-80GB", [("A100", 80)]),
        ("2 x 24", [("24 GB", 24)] * 2),
        (24, [("24 GB", 24)]),
    ],
)
def test_devices_are_read_as_people_write_them(text: str | int, expected: list[tuple[str, int]]) -> None:
    assert [(seat.name, seat.free_bytes / 1e9) for seat in read_devices(text)] == expected


def test_devices_of_a_pool_are_known_by_their_names() -> None:
    device = Device("i", 0, "cuda", "NVIDIA GeForce RTX 3090", "box", "m", 24 * GIB)
    (seat,) = read_devices([device])
    assert (seat.name, seat.free_bytes, seat.bandwidth, seat.id) == ("box cuda:0", 24 * GIB, 936e9, "i")


def test_at_least_counts_the_roomiest_first_and_then_more_of_the_commonest() -> None:
    there = [Seat("a", 10), Seat("b", 100), Seat("c", 100)]
    assert [at_least(total, there) for total in (80, 90, 91, 189)] == [1, 1, 2, 3]


def test_devices_that_are_full_are_no_error() -> None:
    made = plan("8B", [Seat("full", 0), Seat("full", 0)], years=1)
    assert (made.fits, made.row.devices, made.row.at_least, made.outlook) == (False, None, None, None)
    assert "none does" in repr(made)


def test_round_trips_choose_among_many_devices() -> None:
    there = [Seat(f"d{at}", 12 * 10**9, bandwidth=3e11) for at in range(14)]
    site = [at % 2 for at in range(14)]
    rtt = [[0.0 if a == b else 0.001 if site[a] == site[b] else 0.2 for b in range(14)] for a in range(14)]
    for quant, count in (("Q4_K_M", 5), ("int8", 10)):
        made = plan("70B", there, quant=quant, rtt_seconds=rtt)
        assert made.split
        assert len(made.stages) == count
        crossings = sum(site[there.index(a.device)] != site[there.index(b.device)] for a, b in pairwise(made.stages))
        assert crossings == (0 if count == 5 else 1)
        assert made.split.ring_seconds < 0.21


# shapes


@pytest.mark.parametrize("text", ["70B", "Llama-3.1 70B", "llama-70b-instruct"])
def test_a_size_is_a_dense_llama_of_exactly_that_size(text: str) -> None:
    shape = shape_of(text)
    assert shape.params == 70 * 10**9
    assert shape.kv_bytes(4096) == 1_342_177_280
    assert "proportions of a Llama" in shape.assumed


@given(st.integers(10**6, 10**13))
@settings(max_examples=60, deadline=None)
def test_sizes_of_all_kinds_have_exactly_their_parameters(params: int) -> None:
    shape = llama_like(params)
    assert shape.params == params
    assert all(layer.params > 0 for layer in shape.layers)


def test_a_size_needs_no_transformers_and_a_config_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    assert shape_of("8B").params == 8 * 10**9
    with pytest.raises(MissingExtra, match=r"needs transformers: pip install 'kalavai-nb\[models\]'"):
        shape_of(tmp_path)


def test_what_is_no_model_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        shape_of(tmp_path)
    with pytest.raises(ModelError, match=r"there is no file .*x\.gguf"):
        shape_of(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="a model of int cannot be planned"):
        shape_of(7)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match="is no config"):
        shape_of(tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(ModelError, match=r"'nobody/nothing-7B' is no folder.* name a folder with a config\.json"):
        shape_of("nobody/nothing-7B")
    assert time.perf_counter() - began < 20
