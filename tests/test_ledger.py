"""Who gets which devices, and when: the ledger without a clock, a network or Dask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalavai_nb.errors import NotEnoughDevices, PoolClosed
from kalavai_nb.ledger import AWAY_SECONDS, Evict, Granted, Need, Refused, Yield
from ledgers import GIB, IDLE, Pool, device, pool_of

# all or nothing


def test_a_gang_gets_all_its_devices_in_one_step() -> None:
    pool = pool_of(4)
    pool.ask("a", 4)
    [granted] = pool.decide()
    assert isinstance(granted, Granted)
    assert (granted.request, granted.owner) == ("a", "a")
    assert [lease.devices for lease in granted.leases] == [("d0",), ("d1",), ("d2",), ("d3",)]


def test_a_lease_says_whose_it_is() -> None:
    pool = pool_of(1)
    pool.now = 7.0
    [id] = pool.get("a", kind="trial")
    lease = pool.ledger.leases[id]
    assert (lease.owner, lease.label, lease.kind) == ("a", "a.ipynb", "trial")
    assert (lease.share, lease.running, lease.since) == (1.0, True, 7.0)


def test_a_gang_that_does_not_fit_gets_nothing() -> None:
    pool = pool_of(3)
    pool.get("a")
    pool.ask("b", 3)
    assert pool.grants() == {}
    assert [lease.owner for lease in pool.ledger.leases.values()] == ["a"]


def test_two_gangs_that_want_everything_come_one_after_the_other() -> None:
    pool = pool_of(4)
    pool.ask("a", 4)
    pool.ask("b", 4)
    assert list(pool.grants()) == ["a"]
    pool.ledger.release(list(pool.ledger.leases))
    assert list(pool.grants()) == ["b"]


def test_two_sessions_that_both_grow_to_everything_do_not_block_each_other() -> None:
    pool = pool_of(4)
    mine, theirs = pool.get("a", 2), pool.get("b", 2)
    pool.rest(mine)
    pool.rest(theirs)
    pool.ask("a-all", 4, wakes=mine)
    pool.ask("b-all", 4, wakes=theirs)
    assert pool.decide() == []
    pool.now = IDLE
    assert pool.evictions() == ["d2", "d3"]
    pool.ledger.cleared("d2")
    pool.ledger.cleared("d3")
    assert pool.grants() == {"a-all": ["d0", "d1", "d2", "d3"]}


def test_deciding_again_decides_nothing_new() -> None:
    pool = pool_of(2)
    pool.rest(pool.get("a"))
    pool.ask("b", 2)
    pool.now = IDLE
    assert pool.evictions() == ["d0"]
    assert pool.decide() == []


# fair between owners


def test_requests_of_one_owner_are_served_in_order() -> None:
    pool = pool_of(2)
    for id in ("a1", "a2", "a3"):
        pool.ask(id)
    assert list(pool.grants()) == ["a1", "a2"]


def test_an_owner_with_running_devices_waits_behind_one_without() -> None:
    pool = pool_of(2)
    first, _ = pool.get("a1", 2)
    pool.ask("a2")
    pool.ask("b")
    pool.ledger.release([first])
    assert list(pool.grants()) == ["b"]


def test_idle_devices_do_not_count_as_running_ones() -> None:
    pool = pool_of(3)
    pool.rest(pool.get("a", 2))
    pool.get("b1")
    pool.ask("b2")
    pool.ask("a2", kind="trial")
    assert [waiting.id for waiting in pool.ledger.waiting(0.0)] == ["a2", "b2"]


def test_devices_that_come_free_together_go_to_the_owners_in_turn() -> None:
    pool = pool_of(4)
    gang = pool.get("c", 4)
    for id in ("a1", "a2", "a3", "a4"):
        pool.ask(id, kind="trial")
    pool.ask("b1", kind="trial")
    pool.ledger.release(gang)
    assert sorted(pool.grants()) == ["a1", "a2", "a3", "b1"]


def test_a_stream_of_single_trials_cannot_starve_a_gang() -> None:
    pool = pool_of(3)
    running = [pool.get(f"b{n}", kind="trial")[0] for n in range(3)]
    pool.ask("a", 3)
    for n in range(3):
        pool.ask(f"b{n + 3}", kind="trial")
    for lease in running[:2]:
        pool.ledger.release([lease])
        assert pool.grants() == {}
    pool.ledger.release(running[2:])
    assert list(pool.grants()) == ["a"]


def test_trials_of_the_gangs_own_owner_that_came_later_do_not_pass_it() -> None:
    pool = pool_of(2)
    [lease] = pool.get("a1", kind="trial")
    pool.ask("a2", 2)
    pool.ask("a3", kind="trial")
    assert pool.grants() == {}
    pool.ledger.release([lease])
    assert list(pool.grants()) == ["a2"]


def test_a_stream_of_shared_devices_cannot_starve_a_request_for_a_whole_one() -> None:
    pool = pool_of(1)
    halves = [pool.get(f"b{n}", share=0.5)[0] for n in range(2)]
    pool.ask("a")
    pool.ask("b2", share=0.5)
    pool.ledger.release(halves[:1])
    assert pool.grants() == {}
    pool.ledger.release(halves[1:])
    assert list(pool.grants()) == ["a"]


def test_a_gang_that_waits_leaves_devices_that_it_cannot_use() -> None:
    pool = Pool(device(0), device(1), device(2, name="T4"))
    pool.get_on("a", "d0")
    pool.ask("b", 2, type="a100")
    pool.ask("c")
    assert pool.grants() == {"c": ["d2"]}


# sessions that are idle


def test_an_owners_idle_session_does_not_block_its_own_trials() -> None:
    pool = pool_of(1)
    pool.rest(pool.get("a"))
    pool.ask("a2", kind="trial")
    assert pool.grants() == {"a2": ["d0"]}


def test_a_session_cannot_wake_while_its_own_trial_has_the_device() -> None:
    pool = pool_of(1)
    session = pool.get("a")
    pool.rest(session)
    trial = pool.get("a-trial", kind="trial")
    pool.ask("a2", wakes=session)
    assert pool.grants() == {}
    pool.ledger.release(trial)
    assert pool.grants() == {"a2": ["d0"]}


def test_a_session_that_waits_for_the_very_device_of_its_rank_says_so() -> None:
    pool = pool_of(4)
    session = pool.get("a")
    pool.rest(session)
    pool.get("a-model", 2, kind="model", what="model tiny", avoid=("d2", "d3"))
    pool.ask("a2", wakes=session)
    assert pool.grants() == {}
    [waiting] = pool.ledger.waiting(pool.now)
    assert waiting.reason == (
        "1st in the queue; 0 of the 1 devices it needs are free; a.ipynb, model tiny holds m0 cuda:0; "
        "its ranks are there, and others are free: ■ and %pool restart have them placed anew"
    )


def test_a_foreign_idle_session_blocks_until_its_time_is_over() -> None:
    pool = pool_of(1)
    session = pool.get("a")
    pool.now = 10.0
    pool.rest(session)
    pool.ask("b")
    pool.now = 10.0 + IDLE - 0.1
    assert pool.decide() == []
    pool.now = 10.0 + IDLE
    [evict] = pool.decide()
    assert isinstance(evict, Evict)
    assert (evict.lease.id, evict.lease.owner, evict.wanted_by) == (session[0], "a", "b.ipynb")
    assert session[0] not in pool.ledger.leases


def test_a_device_is_granted_only_after_it_was_cleared() -> None:
    pool = pool_of(1)
    pool.rest(pool.get("a"))
    pool.ask("b")
    pool.now = IDLE
    assert pool.evictions() == ["d0"]
    assert pool.grants() == {}
    pool.ledger.cleared("d0")
    assert pool.grants() == {"b": ["d0"]}


def test_an_idle_session_stays_where_nobody_waits() -> None:
    pool = pool_of(1)
    pool.rest(pool.get("a"))
    pool.now = 1000 * IDLE
    assert pool.decide() == []
    assert len(pool.ledger.leases) == 1


def test_an_idle_session_stays_where_there_is_a_free_device() -> None:
    pool = pool_of(2)
    pool.rest(pool.get("a"))
    pool.now = IDLE
    pool.ask("b")
    assert pool.grants() == {"b": ["d1"]}


def test_a_running_session_is_never_evicted() -> None:
    pool = pool_of(1)
    pool.get("a")
    pool.ask("b")
    pool.now = 1000 * IDLE
    assert pool.decide() == []


def test_nothing_is_evicted_where_it_would_not_be_enough() -> None:
    pool = pool_of(3)
    pool.rest(pool.get("a"))
    pool.get("b")
    pool.ask("c", 3)
    pool.now = 10 * IDLE
    assert pool.decide() == []


def test_an_idle_session_under_a_running_trial_of_its_owner_is_not_evicted() -> None:
    pool = pool_of(1)
    pool.rest(pool.get("a"))
    trial = pool.get("a-trial", kind="trial")
    pool.ask("b")
    pool.now = 10 * IDLE
    assert pool.yields() == list(trial)
    pool.ledger.release(trial)
    assert pool.evictions() == ["d0"]


def test_a_sweep_is_asked_once_to_give_back_what_others_wait_for() -> None:
    pool = pool_of(2)
    first = pool.get("a1", kind="trial", what="sweep x")
    second = pool.get("a2", kind="trial", what="sweep x")
    pool.ask("a3", kind="trial", what="sweep x")
    assert pool.yields() == [], "a sweep does not compete with itself"
    pool.ask("b", kind="trial", what="sweep x")
    assert pool.yields() == [*first, *second]
    assert pool.yields() == []
    pool.ledger.release(first)
    assert pool.grants() == {"b": ["d0"]}, "who holds less comes first"
    pool.ledger.release(second)
    assert pool.grants() == {"a3": ["d1"]}


def test_the_spare_of_a_model_is_asked_for_and_its_stages_are_not() -> None:
    pool = pool_of(2)
    pool.get("a1", kind="model", what="model m")
    spare = pool.get("a2", kind="spare", what="model m")
    pool.ask("b")
    assert pool.yields() == list(spare)
    pool.ledger.release(spare)
    assert pool.grants() == {"b": ["d1"]}


def test_the_cell_of_a_notebook_does_not_wait_for_its_whole_sweep() -> None:
    pool = pool_of(1)
    trial = pool.get("a1", kind="trial", what="sweep x")
    pool.ask("a2")
    pool.ask("a3", kind="trial", what="sweep x")
    assert pool.yields() == list(trial)
    pool.ledger.release(trial)
    assert pool.grants() == {"a2": ["d0"]}


def test_a_trial_that_needs_the_whole_card_gets_it_from_its_own_sweep() -> None:
    pool = pool_of(1)
    halves = [*pool.get("a1", kind="trial", share=0.5, what="s"), *pool.get("a2", kind="trial", share=0.5, what="s")]
    pool.ask("a3", kind="trial", what="s")
    assert pool.yields() == halves
    pool.ledger.release(halves)
    assert pool.grants() == {"a3": ["d0"]}


def test_one_device_alone_is_the_preferred_one_then_the_largest() -> None:
    devices = [device(0), device(1, memory_bytes=16 * GIB), device(2), device(3, machine="m1", memory_bytes=24 * GIB)]
    pool = Pool(*devices)
    pool.ask("a", prefer=("d2",))
    pool.ask("b")
    pool.ask("c")
    assert pool.grants() == {"a": ["d2"], "b": ["d3"], "c": ["d1"]}


def test_shares_are_spread_before_they_are_packed() -> None:
    pool = pool_of(2)
    for number in range(5):
        pool.ask(f"a{number}", share=0.5, kind="trial")
    assert list(pool.grants().values()) == [["d0"], ["d1"], ["d0"], ["d1"]]


def test_the_longest_idle_goes_first() -> None:
    pool = pool_of(2)
    mine, theirs = pool.get_on("a", "d0"), pool.get_on("b", "d1")
    pool.now = 5.0
    pool.rest(theirs)
    pool.now = 10.0
    pool.rest(mine)
    pool.ask("c")
    pool.now = 10.0 + IDLE
    assert pool.evictions() == ["d1"]


def test_no_second_session_is_evicted_while_the_first_is_being_closed() -> None:
    pool = pool_of(2)
    mine, theirs = pool.get_on("a", "d0"), pool.get_on("b", "d1")
    pool.rest(theirs)
    pool.now = 10.0
    pool.rest(mine)
    pool.ask("c")
    pool.now = IDLE
    assert pool.evictions() == ["d1"]
    pool.now = 10.0 + IDLE
    assert pool.evictions() == []


def test_free_devices_are_taken_before_idle_sessions() -> None:
    pool = Pool(device(0, "m0"), device(1, "m1"), device(2, "m1"))
    pool.rest(pool.get("a", 2, host="m1"))
    pool.ask("b", 2)
    pool.now = IDLE
    assert len(pool.evictions()) == 1


def test_a_lease_over_two_devices_is_taken_back_whole() -> None:
    pool = pool_of(2)
    pool.rest(pool.get("a", 2, per=2))
    pool.ask("b")
    pool.now = IDLE
    assert pool.evictions() == ["d0", "d1"]
    pool.ledger.cleared("d1")
    assert pool.grants() == {"b": ["d1"]}


def test_a_session_that_wakes_starts_its_idle_time_anew() -> None:
    pool = pool_of(1)
    session = pool.get("a")
    pool.rest(session)
    pool.now = IDLE - 1
    assert pool.get("a2", wakes=session) == session
    pool.ask("b")
    pool.now = IDLE
    pool.rest(session)
    assert pool.decide() == []
    pool.now = 2 * IDLE
    assert pool.evictions() == ["d0"]


# shares


def test_two_halves_fit_on_one_device_and_a_third_waits() -> None:
    pool = pool_of(1)
    for id in ("a", "b", "c"):
        pool.ask(id, share=0.5)
    assert pool.grants() == {"a": ["d0"], "b": ["d0"]}


def test_ten_tenths_fit_on_one_device() -> None:
    pool = pool_of(1)
    for n in range(11):
        pool.ask(f"a{n}", share=0.1)
    assert len(pool.grants()) == 10


def test_a_whole_device_is_not_granted_where_a_share_runs() -> None:
    pool = pool_of(1)
    pool.get("a", share=0.25)
    pool.ask("b")
    assert pool.grants() == {}


def test_a_gang_of_shares_gets_a_device_for_each_rank() -> None:
    pool = pool_of(2)
    pool.ask("a", 2, share=0.5)
    assert pool.grants() == {"a": ["d0", "d1"]}


# groups and machines


def test_a_group_of_two_stays_on_one_machine() -> None:
    pool = Pool(device(0, "m0"), device(1, "m1"), device(2, "m1"))
    pool.ask("a", 2, per=2)
    [granted] = pool.decide()
    assert isinstance(granted, Granted)
    assert [lease.devices for lease in granted.leases] == [("d1", "d2")]


def test_every_group_of_a_gang_is_a_lease() -> None:
    pool = Pool(device(0, "m0"), device(1, "m0"), device(2, "m0"), device(3, "m1"), device(4, "m1"))
    pool.ask("a", 4, per=2)
    [granted] = pool.decide()
    assert isinstance(granted, Granted)
    assert [lease.devices for lease in granted.leases] == [("d0", "d1"), ("d3", "d4")]


def test_a_group_waits_rather_than_span_machines() -> None:
    pool = Pool(device(0, "m0"), device(1, "m0"), device(2, "m1"))
    lease = pool.get_on("a", "d0")
    pool.ask("b", 2, per=2)
    assert pool.grants() == {}
    pool.ledger.release(lease)
    assert pool.grants() == {"b": ["d0", "d1"]}


def test_a_gang_spans_as_few_machines_as_it_can() -> None:
    pool = Pool(device(0, "m0"), device(1, "m1"), device(2, "m1"), device(3, "m1"))
    pool.ask("a", 3)
    assert pool.grants() == {"a": ["d1", "d2", "d3"]}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"type": "a100"}, ["d0"]),
        ({"type": "cpu"}, ["d1"]),
        ({"type": "nvidia*"}, ["d0"]),
        ({"host": "box-?"}, ["d1"]),
        ({"vram_bytes": 8 * GIB}, ["d0"]),
        ({"avoid": ("d0",)}, ["d1"]),
    ],
)
def test_filters_choose_the_device(filters: dict[str, Any], expected: list[str]) -> None:
    pool = Pool(device(0), device(1, host="box-1", kind="cpu", name="EPYC", memory_bytes=4 * GIB))
    pool.ask("a", **filters)
    assert pool.grants() == {"a": expected}


# ranks that are there already


def test_waking_keeps_leases_devices_and_order() -> None:
    pool = pool_of(3)
    first, second, third = pool.get("a", 3)
    pool.rest([first, second, third])
    pool.now = 5.0
    assert pool.get("a2", 2, wakes=(third, first)) == (third, first)
    running = {id: lease.running for id, lease in pool.ledger.leases.items()}
    assert running == {first: True, second: False, third: True}
    assert pool.ledger.leases[third].since == 5.0


def test_a_session_that_grows_keeps_its_ranks_first() -> None:
    pool = pool_of(3)
    leases = pool.get_on("a", "d2")
    pool.rest(leases)
    pool.ask("a2", 3, wakes=leases)
    assert pool.grants() == {"a2": ["d2", "d0", "d1"]}


def test_groups_are_woken_whole() -> None:
    pool = pool_of(4)
    leases = pool.get("a", 2, per=2)
    pool.rest(leases)
    pool.ask("a2", 4, per=2, wakes=leases)
    [granted] = pool.decide()
    assert isinstance(granted, Granted)
    assert [lease.devices for lease in granted.leases] == [("d0", "d1"), ("d2", "d3")]


def test_a_lease_that_was_taken_back_meanwhile_is_replaced_by_a_new_one() -> None:
    pool = pool_of(2)
    mine = pool.get("a")
    pool.rest(mine)
    pool.ledger.release(mine)
    new = pool.get("a2", wakes=mine)
    assert len(new) == 1
    assert new != mine


def test_devices_to_avoid_are_not_granted() -> None:
    pool = pool_of(3)
    pool.ask("a", 2, avoid=("d0",))
    assert pool.grants() == {"a": ["d1", "d2"]}


# devices and owners that go


def test_a_lost_device_takes_its_leases_with_it() -> None:
    pool = pool_of(2)
    [lost, kept] = pool.get("a", 2)
    pool.ledger.remove_device("d0", pool.now)
    assert list(pool.ledger.leases) == [kept]
    assert lost not in pool.ledger.leases


def test_a_request_for_a_lost_device_waits_for_it_to_come_back() -> None:
    pool = pool_of(2)
    pool.ledger.remove_device("d1", 0.0)
    pool.now = AWAY_SECONDS - 1
    pool.ask("a", 2)
    assert pool.grants() == {}
    assert "m0 cuda:1 was lost and is expected back" in pool.reason("a")
    pool.ledger.add_device(device(1))
    assert pool.grants() == {"a": ["d0", "d1"]}


def test_a_device_that_stays_away_is_no_longer_waited_for() -> None:
    pool = pool_of(2)
    pool.ledger.remove_device("d1", 0.0)
    pool.now = AWAY_SECONDS
    with pytest.raises(NotEnoughDevices, match="asked for 2 devices, but the pool has 1: m0 cuda:0"):
        pool.ask("a", 2)
    pool.ask("b", 1)
    assert pool.grants() == {"b": ["d0"]}


def test_a_lost_device_that_was_being_cleared_comes_back_free() -> None:
    pool = pool_of(1)
    pool.ledger.clearing("d0")
    pool.ledger.remove_device("d0", 0.0)
    pool.ledger.add_device(device(0))
    pool.ask("a")
    assert pool.grants() == {"a": ["d0"]}


def test_losing_a_device_twice_is_nothing_new() -> None:
    pool = pool_of(1)
    pool.ledger.remove_device("d0", 0.0)
    pool.ledger.remove_device("d0", AWAY_SECONDS)
    pool.now = AWAY_SECONDS
    with pytest.raises(NotEnoughDevices):
        pool.ask("a")


def test_an_owner_that_goes_leaves_nothing_behind() -> None:
    pool = pool_of(3)
    mine = pool.get("a", 2)
    other = pool.get("b")
    pool.ask("a2", kind="trial")
    gone = pool.ledger.remove_owner("a")
    assert tuple(lease.id for lease in gone) == mine
    assert tuple(pool.ledger.leases) == other
    assert pool.ledger.waiting(0.0) == []
    with pytest.raises(PoolClosed, match="not connected"):
        pool.ask("a3")


def test_an_unknown_owner_holds_nothing() -> None:
    assert pool_of(1).ledger.remove_owner("nobody") == []


def test_what_a_vanished_owner_left_running_blocks_until_it_has_ended() -> None:
    pool = pool_of(1)
    pool.get("a")
    pool.ledger.remove_owner("a")
    pool.ledger.clearing("d0")
    pool.ask("b")
    assert pool.grants() == {}
    assert "a session that is being closed holds m0 cuda:0" in pool.reason("b")
    pool.ledger.cleared("d0")
    assert pool.grants() == {"b": ["d0"]}


def test_a_cancelled_request_is_not_granted_and_holds_nothing_back() -> None:
    pool = pool_of(2)
    lease = pool.get("a")
    pool.ask("b", 2)
    pool.ask("c")
    assert pool.grants() == {}
    pool.ledger.cancel("b")
    assert pool.grants() == {"c": ["d1"]}
    pool.ledger.release(lease)
    assert pool.grants() == {}


def test_what_a_cancelled_request_kept_is_for_whoever_asks_next() -> None:
    pool = pool_of(2)
    pool.get("a")
    pool.ask("b", 2)
    assert pool.grants() == {}
    pool.ledger.cancel("b")
    assert pool.grants() == {}
    pool.ask("c")
    assert pool.grants() == {"c": ["d1"]}


def test_who_asks_later_and_holds_less_comes_before_who_keeps_devices() -> None:
    pool = pool_of(4)
    pool.get("a1", 2)
    pool.ask("a2", 3)
    assert pool.grants() == {}
    pool.ask("b")
    assert pool.grants() == {"b": ["d2"]}


def test_resting_or_releasing_what_is_gone_changes_nothing() -> None:
    pool = pool_of(1)
    leases = pool.get("a")
    pool.ledger.release(leases)
    pool.ledger.release(leases)
    pool.ledger.rest(leases, 1.0)
    assert pool.ledger.leases == {}


# in words


def test_more_devices_than_the_pool_has_is_refused_with_what_there_is() -> None:
    pool = pool_of(2)
    with pytest.raises(NotEnoughDevices) as error:
        pool.ask("a", 3)
    assert str(error.value) == (
        "asked for 3 devices, but the pool has 2: m0 cuda:0, m0 cuda:1. Try gpus=2, or add a machine to the pool."
    )
    assert pool.ledger.waiting(0.0) == []


def test_a_kind_of_device_that_is_not_there_is_refused_with_what_is() -> None:
    pool = Pool(device(0, "box"))
    with pytest.raises(NotEnoughDevices) as error:
        pool.ask("a", type="h100", vram_bytes=24 * GIB)
    assert str(error.value) == (
        "asked for 1 device with type=h100 vram=24GB, but no device of the pool is like that. "
        "There is: NVIDIA A100 (8 GB) on box. Ask for less, or leave it out."
    )


def test_groups_that_no_machine_can_hold_are_refused() -> None:
    pool = Pool(device(0, "m0"), device(1, "m1"))
    with pytest.raises(NotEnoughDevices, match="asked for 2 devices in groups of 2 on one machine"):
        pool.ask("a", 2, per=2)


def test_an_empty_pool_says_so() -> None:
    with pytest.raises(NotEnoughDevices, match="the pool has 0: none"):
        Pool().ask("a")


def test_a_request_that_waits_names_its_place_the_free_devices_and_the_holders() -> None:
    pool = pool_of(4)
    pool.get("a", 2)
    pool.rest(pool.get("b"))
    pool.ask("c1", 4)
    pool.ask("c2", 4)
    pool.now = 12.0
    assert pool.reason("c2") == (
        "2nd in the queue; 1 of the 4 devices it needs are free; a.ipynb holds m0 cuda:0, m0 cuda:1; "
        "b.ipynb (idle 12 s, released at 60 s) holds m0 cuda:2"
    )


def test_the_queue_tells_who_waits_since_when() -> None:
    pool = pool_of(2)
    pool.get("a", 2)
    pool.now = 3.0
    pool.ask("b", 2)
    [waiting] = pool.ledger.waiting(8.0)
    assert (waiting.id, waiting.owner, waiting.label, waiting.count, waiting.since) == ("b", "b", "b.ipynb", 2, 3.0)


def test_the_queue_is_told_in_the_order_it_will_be_served() -> None:
    pool = pool_of(2)
    pool.get("a", 2)
    pool.ask("a2")
    pool.ask("b")
    pool.ask("c")
    assert [waiting.id for waiting in pool.ledger.waiting(0.0)] == ["b", "c", "a2"]


def test_places_in_a_long_queue_are_named_as_people_do() -> None:
    pool = pool_of(1)
    pool.get("a")
    for n in range(23):
        pool.ask(f"b{n}")
    places = [waiting.reason.split(" ", 1)[0] for waiting in pool.ledger.waiting(0.0)]
    assert places[:4] == ["1st", "2nd", "3rd", "4th"]
    assert places[10:13] == ["11th", "12th", "13th"]
    assert places[20:] == ["21st", "22nd", "23rd"]


# when to look again


def test_nobody_need_look_again_where_nobody_waits() -> None:
    pool = pool_of(1)
    pool.rest(pool.get("a"))
    assert pool.ledger.next_look_seconds(0.0) is None


def test_nobody_need_look_again_where_only_an_event_can_help() -> None:
    pool = pool_of(1)
    pool.get("a")
    pool.ask("b")
    assert pool.ledger.next_look_seconds(0.0) is None


def test_the_next_look_is_when_the_first_session_may_be_taken_back() -> None:
    pool = pool_of(2)
    mine, theirs = pool.get("a"), pool.get("b")
    pool.now = 10.0
    pool.rest(mine)
    pool.now = 20.0
    pool.rest(theirs)
    pool.ask("c")
    assert pool.ledger.next_look_seconds(20.0) == pytest.approx(IDLE - 10.0)


def test_a_session_that_is_idle_for_long_but_of_no_help_is_no_reason_to_look_at_once() -> None:
    pool = pool_of(2)
    pool.rest(pool.get("a"))
    pool.get("b")
    pool.ask("c", 2)
    pool.now = 2 * IDLE
    assert pool.decide() == []
    pause = pool.ledger.next_look_seconds(pool.now)
    assert pause is None or pause >= 1.0


# whatever happens


DEVICES = (
    device(0, "m0"),
    device(1, "m0"),
    device(2, "m0"),
    device(3, "m1"),
    device(4, "m1", kind="cpu", name="EPYC"),
)
# a count of zero would be no request
NEEDS = st.builds(
    Need,
    owner=st.sampled_from("abc"),
    count=st.sampled_from([1, 2, 4]),
    kind=st.sampled_from(["session", "trial"]),
    per=st.just(1),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    type=st.sampled_from(["", "", "cuda", "cpu"]),
    host=st.sampled_from(["", "", "m0", "m1"]),
    avoid=st.sampled_from([(), (), ("d0",)]),
)
GROUPS = st.builds(Need, owner=st.sampled_from("abc"), count=st.sampled_from([2, 4]), per=st.just(2))
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.one_of(NEEDS, GROUPS)),
    st.tuples(st.just("wake"), st.sampled_from("abc")),
    st.tuples(st.sampled_from(["rest", "release", "clear", "cancel", "lose", "return"]), st.integers(0, 7)),
    st.tuples(st.just("forget"), st.sampled_from("abc")),
    st.tuples(st.just("pass"), st.sampled_from([1.0, AWAY_SECONDS, IDLE])),
)


@dataclass
class Story:
    """A ledger that is driven at random, what it has evicted and not yet cleared, and checks after each step."""

    pool: Pool
    needs: dict[str, Need]
    evicted: list[str]
    number: int = 0

    def take(self, step: str, what: Any) -> None:
        ledger = self.pool.ledger
        if step == "ask":
            self._ask(what)
        elif step == "wake":
            idle = [lease for lease in ledger.leases.values() if lease.owner == what and not lease.running]
            waking = {id for need in self.needs.values() for id in need.wakes}
            if idle and idle[0].id not in waking:
                lease = idle[0]
                self._ask(Need(what, len(lease.devices), per=len(lease.devices), share=lease.share, wakes=(lease.id,)))
        elif step in ("rest", "release"):
            running = [lease.id for lease in ledger.leases.values() if lease.running]
            for lease in running[what : what + 1]:
                self.pool.rest([lease]) if step == "rest" else ledger.release([lease])
        elif step == "clear":
            for id in self.evicted[what : what + 1]:
                self.evicted.remove(id)
                ledger.cleared(id)
        elif step == "cancel":
            for request in list(self.needs)[what : what + 1]:
                self.needs.pop(request)
                ledger.cancel(request)
        elif step in ("lose", "return"):
            for known in DEVICES[what : what + 1]:
                if step == "lose":
                    ledger.remove_device(known.id, self.pool.now)
                    self.evicted = [id for id in self.evicted if id != known.id]
                elif known.id not in ledger.devices:
                    ledger.add_device(known)
        elif step == "forget":
            ledger.remove_owner(what)
            self.needs = {request: need for request, need in self.needs.items() if need.owner != what}
            ledger.add_owner(what, f"{what}.ipynb")
        else:
            self.pool.now += what
        self.check()

    def _ask(self, need: Need) -> None:
        self.number += 1
        try:
            self.pool.ledger.request(f"r{self.number}", need, self.pool.now)
        except NotEnoughDevices:
            return
        self.needs[f"r{self.number}"] = need

    def decide(self) -> None:
        """Let the ledger decide, and check what it decided."""
        ledger = self.pool.ledger
        before = dict(ledger.leases)
        for decision in self.pool.decide():
            if isinstance(decision, Evict):
                lease = decision.lease
                assert before[lease.id] == lease
                assert not lease.running
                assert self.pool.now - lease.since >= IDLE
                self.evicted += lease.devices
                continue
            if isinstance(decision, Yield):
                assert decision.lease.kind == "trial"
                assert decision.lease.running
                continue
            if isinstance(decision, Refused):
                del self.needs[decision.request]
                continue
            need = self.needs.pop(decision.request)
            granted = [id for lease in decision.leases for id in lease.devices]
            assert decision.owner == need.owner
            assert len(granted) == len(set(granted)) == need.count
            assert not set(granted) & set(self.evicted)
            for lease in decision.leases:
                assert len(lease.devices) == need.per
                assert len({ledger.devices[id].machine for id in lease.devices}) == 1
                assert lease.id in need.wakes or all(need.fits(ledger.devices[id]) for id in lease.devices)
                idle = [other for id in lease.devices for other in self.on(id) if not other.running]
                assert all(other.owner == need.owner for other in idle)
        self.check()

    def on(self, id: str) -> list[Any]:
        return [lease for lease in self.pool.ledger.leases.values() if id in lease.devices]

    def check(self) -> None:
        ledger = self.pool.ledger
        for lease in ledger.leases.values():
            assert set(lease.devices) <= set(ledger.devices)
        for id in ledger.devices:
            shares = [lease.share for lease in self.on(id) if lease.running]
            assert sum(shares) <= 1.0 + 1e-6
            owners = {lease.owner for lease in self.on(id)}
            assert len(owners) < 2 or all(lease.share < 1.0 for lease in self.on(id))
        assert {waiting.id for waiting in ledger.waiting(self.pool.now)} == set(self.needs)

    def calm_down(self) -> None:
        """Everybody rests, all devices are back, evictions are carried out, and time goes by."""
        ledger = self.pool.ledger
        for known in DEVICES:
            if known.id not in ledger.devices:
                ledger.add_device(known)
        for _ in range(4 * len(self.needs) + 4):
            ledger.release([lease.id for lease in ledger.leases.values() if lease.kind == "trial"])
            self.pool.rest([lease.id for lease in ledger.leases.values() if lease.running])
            self.pool.now += IDLE
            self.decide()
            for id in self.evicted:
                ledger.cleared(id)
            self.evicted = []
            self.decide()


@settings(deadline=None, max_examples=150)
@given(st.lists(STEPS, max_size=30))
def test_whatever_happens_devices_are_shared_soundly_and_everybody_is_served_in_the_end(
    steps: list[tuple[str, Any]],
) -> None:
    story = Story(Pool(*DEVICES), {}, [])
    for step, what in steps:
        story.take(step, what)
        story.decide()
    story.calm_down()
    assert story.needs == {}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(NEEDS, GROUPS), max_size=12), st.lists(STEPS, max_size=12))
def test_whatever_happened_deciding_twice_at_once_is_deciding_once(
    needs: list[Need], steps: list[tuple[str, Any]]
) -> None:
    story = Story(Pool(*DEVICES), {}, [])
    for step, what in [*(("ask", replace(need, kind="session")) for need in needs), *steps]:
        story.take(step, what)
    story.decide()
    assert story.pool.decide() == []
