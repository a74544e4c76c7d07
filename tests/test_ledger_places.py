"""Where the ledger places what is asked for: on machines that reach each other, on fast devices, on none that leave."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kalavai_nb.errors import NotEnoughDevices, OptionError
from kalavai_nb.ledger import AWAY_SECONDS, Drained, Evict, Granted, Refused, Yield
from ledgers import GIB, IDLE, Pool, device, pool_of


def machines(*sizes: int, **fields: Any) -> Pool:
    """Machines m0, m1, … with so many devices."""
    number = itertools.count()
    return Pool(*(device(next(number), f"m{m}", **fields) for m, size in enumerate(sizes) for _ in range(size)))


# machines that reach each other


def test_a_connected_gang_fits_on_one_machine_whatever_is_known_of_links() -> None:
    pool = machines(1, 2, 1)
    pool.ask("a", 2, connected=True)
    assert pool.grants() == {"a": ["d1", "d2"]}


def test_a_connected_gang_waits_until_links_are_measured_and_keeps_nothing_till_then() -> None:
    pool = machines(1, 1)
    pool.ask("a", 2, connected=True)
    pool.ask("b")
    assert pool.grants() == {"b": ["d0"]}
    assert "whether m0 and m1 reach each other is not measured yet" in pool.reason("a")
    pool.ledger.set_links("m1", "m0", True)
    assert pool.grants() == {}
    assert "m0 cuda:0" in pool.reason("a")
    pool.ledger.release(list(pool.ledger.leases))
    assert pool.grants() == {"a": ["d0", "d1"]}


def test_a_connected_gang_is_placed_on_machines_that_reach_each_other() -> None:
    pool = machines(2, 1, 1)
    pool.ledger.set_links("m0", "m1", False)
    pool.ledger.set_links("m0", "m2", False)
    pool.ledger.set_links("m1", "m2", True)
    pool.get("b", 1, host="m0")
    pool.ask("a", 2, connected=True)
    assert pool.grants() == {"a": ["d2", "d3"]}


def test_a_clique_is_found_that_does_not_have_the_largest_machine() -> None:
    pool = machines(3, 2, 2)
    for one, other, mutual in (("m0", "m1", False), ("m0", "m2", False), ("m1", "m2", True)):
        pool.ledger.set_links(one, other, mutual)
    pool.ask("a", 4, connected=True)
    assert pool.grants() == {"a": ["d3", "d4", "d5", "d6"]}


def test_what_can_never_be_connected_is_refused_with_the_machines_and_a_way_out() -> None:
    pool = machines(1, 1)
    pool.ledger.set_links("m0", "m1", False)
    with pytest.raises(NotEnoughDevices) as error:
        pool.ask("a", 2, connected=True)
    assert str(error.value) == (
        "asked for 2 devices on machines that reach each other, but m0 and m1 cannot. Ask for fewer, or with "
        "reach=any, where ranks do not use torch.distributed between machines."
    )
    pool.ask("b", 2)
    assert pool.grants() == {"b": ["d0", "d1"]}


def test_a_connected_request_that_waits_is_refused_when_its_links_turn_out_to_be_missing() -> None:
    pool = machines(1, 1)
    pool.ask("a", 2, connected=True)
    assert pool.decide() == []
    pool.ledger.set_links("m0", "m1", False)
    [refused] = pool.decide()
    assert isinstance(refused, Refused)
    assert "m0 and m1 cannot" in refused.reason


def test_free_devices_that_are_apart_are_said_to_be_so() -> None:
    pool = machines(2, 1)
    pool.ledger.set_links("m0", "m1", False)
    pool.get_on("b", "d0")
    pool.ask("a", 2, connected=True)
    assert pool.grants() == {}
    assert "those that are free are on machines that cannot reach each other" in pool.reason("a")


def test_the_ranks_that_a_session_has_are_in_the_clique() -> None:
    pool = machines(1, 2, 1)
    for other in ("m1", "m2"):
        pool.ledger.set_links("m0", other, other == "m2")
    session = pool.get_on("a", "d0")
    pool.rest(session)
    pool.ask("a2", 2, wakes=session, connected=True)
    assert pool.grants() == {"a2": ["d0", "d3"]}


def test_links_of_a_machine_that_is_gone_for_good_are_measured_anew() -> None:
    pool = machines(1, 1, 2)
    pool.ledger.set_links("m0", "m1", True)
    pool.ledger.remove_device("d1", 0.0)
    pool.now = AWAY_SECONDS
    assert pool.decide() == []
    pool.ledger.add_device(device(1, "m1"))
    pool.get("b", 2, host="m2")
    pool.ask("a", 2, connected=True, type="a100")
    assert pool.grants() == {}
    assert "m0 and m1" in pool.reason("a")


# speed


def test_a_single_device_is_the_fastest_that_is_free() -> None:
    pool = Pool(device(0, flops=1e12), device(1, flops=9e12), device(2, flops=5e12, memory_bytes=80 * GIB))
    for id in ("a", "b", "c"):
        pool.ask(id)
    assert pool.grants() == {"a": ["d1"], "b": ["d2"], "c": ["d0"]}


def test_what_was_preferred_comes_before_what_is_fast() -> None:
    pool = Pool(device(0, flops=1e12), device(1, flops=9e12))
    pool.ask("a", prefer=("d0",))
    assert pool.grants() == {"a": ["d0"]}


def test_measurements_that_differ_a_little_are_of_equal_speed() -> None:
    pool = Pool(*(device(number, flops=(1.00 + 0.01 * number) * 1e12) for number in range(3)))
    pool.ask("a")
    assert pool.grants() == {"a": ["d0"]}


def test_a_gpu_that_was_not_measured_is_faster_than_a_stand_in_that_was() -> None:
    pool = Pool(device(0, kind="cpu", name="EPYC", flops=1e12), device(1))
    pool.ask("a")
    assert pool.grants() == {"a": ["d1"]}


def test_a_gang_is_of_equal_speed_where_that_takes_no_more_machines() -> None:
    fast, slow = {"flops": 9e12}, {"flops": 1e12}
    pool = Pool(
        *(device(0, "m0", **fast), device(1, "m0", **slow), device(2, "m0", **slow)),
        *(device(3, "m1", **fast), device(4, "m1", **fast)),
    )
    pool.ask("a", 2)
    assert pool.grants() == {"a": ["d3", "d4"]}


def test_a_gang_is_on_few_machines_rather_than_of_equal_speed() -> None:
    fast, slow = {"flops": 9e12}, {"flops": 1e12}
    pool = Pool(device(0, "m0", **fast), device(1, "m0", **slow), device(2, "m1", **fast))
    pool.ask("a", 2)
    assert pool.grants() == {"a": ["d0", "d1"]}


# devices that are taken back by who lends them


def test_a_leaving_device_is_granted_to_nobody_and_is_drained_at_once_where_nobody_has_it() -> None:
    pool = pool_of(2)
    pool.ledger.leave("d0", "its owner takes it back", 40.0)
    assert pool.decide() == [Drained("d0")]
    assert pool.decide() == []
    pool.ask("a")
    assert pool.grants() == {"a": ["d1"]}
    assert pool.ledger.leaving(10.0) == {"d0": "its owner takes it back: 30 s left"}


def test_idle_sessions_of_a_leaving_device_are_taken_back_at_once_and_what_can_move_is_asked_to() -> None:
    pool = pool_of(3)
    session = pool.get_on("a", "d0")
    trial = pool.get_on("b", "d1", kind="trial")
    pool.get_on("c", "d2")
    pool.rest(session)
    for id in ("d0", "d1", "d2"):
        pool.ledger.leave(id, "hours", 40.0)
    evict, ask = pool.decide()
    assert isinstance(evict, Evict)
    assert isinstance(ask, Yield)
    assert (evict.lease.id, evict.wanted_by) == (session[0], "the owner of m0")
    assert ask.lease.id == trial[0]
    assert pool.decide() == []
    pool.ledger.cleared("d0")
    assert pool.decide() == [Drained("d0")]
    pool.ledger.release(trial)
    assert pool.decide() == [Drained("d1")]


def test_the_session_of_a_cell_that_ends_on_a_leaving_device_is_taken_back_then() -> None:
    pool = pool_of(1)
    session = pool.get("a")
    pool.ledger.leave("d0", "hours", 40.0)
    assert pool.decide() == []
    pool.rest(session)
    [evict] = pool.decide()
    assert isinstance(evict, Evict)


def test_a_request_that_needs_a_leaving_device_says_so_and_keeps_nothing_from_others() -> None:
    pool = pool_of(2)
    pool.ledger.leave("d1", "its owner takes it back", 40.0)
    pool.decide()
    pool.ask("a", 2)
    pool.ask("b")
    assert pool.grants() == {"b": ["d0"]}
    assert "m0 cuda:1 is leaving (its owner takes it back: 40 s left)" in pool.reason("a")
    pool.ledger.stay("d1")
    pool.ledger.release(list(pool.ledger.leases))
    assert pool.grants() == {"a": ["d0", "d1"]}


def test_a_device_that_has_left_is_waited_for_as_a_lost_one_is() -> None:
    pool = pool_of(2)
    pool.ledger.leave("d1", "hours", 40.0)
    pool.ledger.remove_device("d1", 0.0)
    pool.ask("a", 2)
    assert pool.grants() == {}
    assert "m0 cuda:1 has left (hours)" in pool.reason("a")
    pool.now = AWAY_SECONDS
    [refused] = pool.decide()
    assert isinstance(refused, Refused)


def test_a_device_that_left_and_came_back_is_there_like_any() -> None:
    pool = pool_of(1)
    pool.ledger.leave("d0", "hours", 40.0)
    pool.ledger.remove_device("d0", 0.0)
    pool.ledger.add_device(device(0))
    assert pool.ledger.leaving(0.0) == {}
    pool.ask("a")
    assert pool.grants() == {"a": ["d0"]}


def test_other_limits_of_a_leaving_device_do_not_keep_it() -> None:
    pool = pool_of(1)
    pool.ledger.leave("d0", "hours", 40.0)
    pool.ledger.add_device(device(0, limits="80% of its memory"))
    pool.ask("a")
    assert pool.grants() == {}


def test_a_session_is_not_evicted_for_a_place_on_a_leaving_device() -> None:
    pool = pool_of(2)
    pool.rest(pool.get_on("a", "d0"))
    pool.ledger.leave("d1", "hours", 400.0)
    pool.decide()
    pool.ask("b", 2)
    pool.now = IDLE
    assert [d for d in pool.decide() if isinstance(d, Evict | Granted)] == []


# large pools


def test_reasons_stay_short_however_many_devices_and_holders_there_are() -> None:
    owners = "".join(map(chr, range(0x4E00, 0x4E00 + 50)))
    pool = Pool(*(device(n, f"m{n}") for n in range(300)), owners=owners)
    for number in range(300):
        pool.ask(f"r{number}", owner=owners[number % 50])
    pool.decide()
    pool.ask("z", owner=owners[0])
    reason = pool.reason("z")
    assert len(reason) < 1000
    assert "more are held" in reason


def test_the_first_of_a_long_queue_can_be_had_alone() -> None:
    pool = pool_of(1)
    pool.get("a")
    for number in range(50):
        pool.ask(f"b{number}")
    assert [w.id for w in pool.ledger.waiting(0.0, most=2)] == ["b0", "b1"]
    why = pool.ledger.why("b9", 0.0)
    assert why is not None
    assert why.reason.startswith("10th in the queue")
    assert pool.ledger.why("a", 0.0) is None


def test_a_request_for_nothing_is_refused() -> None:
    pool = pool_of(1)
    with pytest.raises(OptionError, match="wanted 1 or more"):
        pool.ask("a", 0)
    with pytest.raises(OptionError, match="wanted 1 or more"):
        pool.ask("a", share=0.0)
