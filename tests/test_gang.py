"""What goes to which rank, what comes back from it, and how a pool and its failures are told."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from itertools import chain, count
from typing import Any, cast

import numpy as np
import pytest

from kalavai_nb import session
from kalavai_nb.blobs import Packed, pack
from kalavai_nb.capture import Captured
from kalavai_nb.errors import OptionError, RankDied, RemoteError
from kalavai_nb.failure import LAST_LINES, Failure, exception_of
from kalavai_nb.gang import Gang, Rank, Sending, gang_key, plan_sending
from kalavai_nb.options import RunOptions
from kalavai_nb.reading import Machine
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device, Lease, Link, Waiting
from kalavai_nb.table import snapshot_html, snapshot_text
from kalavai_nb.values import split

GIB = 2**30


def device(number: int, **fields: Any) -> Device:
    given = {"kind": "cuda", "name": "NVIDIA A100", "host": "box", "machine": "m0", "memory_bytes": 80 * GIB, **fields}
    return Device(id=f"d{number}", index=number, worker=f"tls://10.0.0.1:{4000 + number}", **given)


def rank(number: int, **names: str) -> Rank:
    return Rank(number, f"lease-{number}", [device(number)], names=names)


def item(name: str, value: object) -> Captured:
    return Captured(name, pack(value), 1, False)


def digest(value: object) -> str:
    return pack(value).blob.digest


def names(items: list[Captured]) -> list[str]:
    return [item.name for item in items]


def taken(sending: Sending) -> dict[int, list[str]]:
    return {number: list(take) for number, take in sending.take.items()}


# what goes to which rank


def test_a_rank_that_lacks_a_name_gets_it() -> None:
    sending = plan_sending(Gang(), [rank(0), rank(1)], [item("x", 1), item("y", 2)], explicit=False)
    assert taken(sending) == {0: ["x", "y"], 1: ["x", "y"]}
    assert names(sending.sent) == ["x", "y"]
    assert (sending.reused, sending.kept, sending.superseded) == ([], [], [])


def test_what_is_told_of_sending_counts_machines_and_not_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Brings all content at once."""

        def listen(self, *_: object) -> None:
            pass

        def place(self, packed: list[Packed], devices: list[Device], on_piece: Callable[[int], None]) -> None:
            assert len(packed) == 2
            for _ in {device.machine for device in devices}:
                on_piece(sum(each.blob.total_bytes for each in packed))

    monkeypatch.setattr(session, "PROGRESS_FROM_BYTES", 0)
    monkeypatch.setattr(session.time, "monotonic", count(step=2).__next__)
    monkeypatch.setattr(session, "human_bytes", str)
    said: list[str] = []
    ranks = [rank(0), rank(1), Rank(2, "lease-2", [device(2, machine="m1")])]
    items = [item("x", b"x" * 1000), item("same", b"x" * 1000), item("y", b"y" * 500)]
    sending = plan_sending(Gang(), ranks, items, explicit=False)
    one = sum(each.blob.total_bytes for each in sending.content())
    session.Session(cast(Any, Pool()), said.append)._place(sending, ranks)
    assert said[:2] == [f"sending: {one} of {2 * one}", f"sending: {2 * one} of {2 * one}"]


def test_a_rank_that_has_the_same_content_reuses_it() -> None:
    gang, ranks = Gang(), [rank(0, x=digest(1)), rank(1, x=digest(1))]
    sending = plan_sending(gang, ranks, [item("x", 1)], explicit=False)
    assert taken(sending) == {0: [], 1: []}
    assert (names(sending.sent), names(sending.reused)) == ([], ["x"])


def test_content_that_has_changed_is_sent_again_and_the_old_superseded() -> None:
    gang, ranks = Gang(known={"x": digest(1)}), [rank(0, x=digest(1))]
    sending = plan_sending(gang, ranks, [item("x", 2)], explicit=False)
    assert taken(sending) == {0: ["x"]}
    assert names(sending.sent) == ["x"]
    assert sending.superseded == [digest(1)]
    assert gang.known == {"x": digest(2)}


def test_a_new_rank_gets_what_the_others_have() -> None:
    gang, ranks = Gang(known={"x": digest(1)}), [rank(0, x=digest(1)), rank(1)]
    sending = plan_sending(gang, ranks, [item("x", 1)], explicit=False)
    assert taken(sending) == {0: [], 1: ["x"]}
    assert (names(sending.sent), names(sending.reused)) == (["x"], [])


def test_a_name_that_a_rank_assigned_itself_is_kept_and_said_so_once() -> None:
    gang, ranks = Gang(), [rank(0, x=""), rank(1, x="")]
    first = plan_sending(gang, ranks, [item("x", 1)], explicit=False)
    assert taken(first) == {0: [], 1: []}
    assert (names(first.sent), names(first.reused), names(first.kept)) == ([], [], ["x"])
    second = plan_sending(gang, ranks, [item("x", 1)], explicit=False)
    assert taken(second) == {0: [], 1: []}
    assert (names(second.sent), names(second.reused), names(second.kept)) == ([], [], [])


def test_a_name_that_changed_here_wins_over_the_ranks_own() -> None:
    gang, ranks = Gang(), [rank(0, x="")]
    plan_sending(gang, ranks, [item("x", 1)], explicit=False)
    sending = plan_sending(gang, ranks, [item("x", 2)], explicit=False)
    assert taken(sending) == {0: ["x"]}
    assert names(sending.sent) == ["x"]


def test_a_name_that_was_asked_for_wins_over_the_ranks_own() -> None:
    gang, ranks = Gang(known={"x": digest(1)}), [rank(0, x="")]
    sending = plan_sending(gang, ranks, [item("x", 1)], explicit=True)
    assert taken(sending) == {0: ["x"]}
    assert (names(sending.sent), names(sending.kept)) == (["x"], [])


def test_a_name_that_was_asked_for_is_reused_where_it_is() -> None:
    sending = plan_sending(Gang(), [rank(0, x=digest(1))], [item("x", 1)], explicit=True)
    assert taken(sending) == {0: []}
    assert names(sending.reused) == ["x"]


def test_some_ranks_may_keep_their_own_while_others_get_it() -> None:
    sending = plan_sending(Gang(), [rank(0, x=""), rank(1)], [item("x", 1)], explicit=False)
    assert taken(sending) == {0: [], 1: ["x"]}
    assert names(sending.sent) == ["x"]


def test_a_rank_that_holds_other_content_gets_ours() -> None:
    sending = plan_sending(Gang(), [rank(0, x=digest(3))], [item("x", 1)], explicit=False)
    assert taken(sending) == {0: ["x"]}


def test_content_that_another_name_still_has_is_not_superseded() -> None:
    gang = Gang(known={"x": digest([1]), "y": digest([1])})
    ranks = [rank(0, x=digest([1]), y=digest([1]))]
    sending = plan_sending(gang, ranks, [item("x", [2]), item("y", [1])], explicit=False)
    assert names(sending.sent) == ["x"]
    assert sending.superseded == []


def test_a_cell_that_needs_nothing_sends_nothing() -> None:
    sending = plan_sending(Gang(), [rank(0, x="")], [], explicit=False)
    assert taken(sending) == {0: []}


def test_cells_of_the_same_filters_share_their_ranks() -> None:
    base = RunOptions()
    same: list[dict[str, Any]] = [{"gpus": 2}, {"ranks": "0"}, {"send": "none"}, {"timeout": 1}, {"show": "tabs"}]
    other: list[dict[str, Any]] = [{"gpus": 0}, {"per": 2}, {"type": "a100"}, {"host": "box"}, {"vram": 24}]
    assert all(gang_key(base.updated(given)) == gang_key(base) for given in same)
    assert len({gang_key(base.updated(given)) for given in [{}, *other]}) == 6


def test_a_rank_is_where_its_first_device_is() -> None:
    some = Rank(0, "lease", [device(2), device(3)])
    assert (some.where, some.worker) == ("box cuda:2", "tls://10.0.0.1:4002")


# scattering


@pytest.mark.parametrize(
    ("value", "parts", "expected"),
    [
        ([1, 2, 3, 4], 2, [[1, 2], [3, 4]]),
        ((1, 2, 3), 2, [(1,), (2, 3)]),
        (range(5), 2, [range(0, 2), range(2, 5)]),
        ([1], 3, [[], [], [1]]),
        ([], 2, [[], []]),
        ([1, 2], 1, [[1, 2]]),
    ],
)
def test_sequences_are_split_into_their_own_kind(value: Any, parts: int, expected: list[Any]) -> None:
    assert split("xs", value, parts) == expected


@pytest.mark.parametrize(("length", "parts"), [(10, 3), (100, 7), (5, 8), (0, 3)])
def test_parts_are_consecutive_and_of_nearly_equal_length(length: int, parts: int) -> None:
    found = split("xs", list(range(length)), parts)
    assert list(chain(*found)) == list(range(length))
    assert len(found) == parts
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_arrays_are_split_by_rows() -> None:
    array = np.arange(12).reshape(6, 2)
    parts = split("xs", array, 4)
    assert [part.shape for part in parts] == [(1, 2), (2, 2), (1, 2), (2, 2)]
    assert np.array_equal(np.concatenate(parts), array)


def test_data_frames_are_split_by_rows_whatever_their_index_is() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": [1, 2, 3]}, index=[7, 5, 6])
    first, second = split("df", frame, 2)
    assert (first["a"].tolist(), second["a"].tolist()) == ([1], [2, 3])
    assert isinstance(first, pd.DataFrame)
    assert [part.tolist() for part in split("s", frame["a"], 2)] == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [({"a": 1}, "dict"), ("text", "str"), (b"bytes", "bytes"), ({1, 2}, "set"), (5, "int"), (None, "NoneType")],
)
def test_what_cannot_be_split_is_refused_by_its_kind(value: Any, kind: str) -> None:
    with pytest.raises(TypeError) as error:
        split("xs", value, 2)
    assert str(error.value) == f"scatter=xs cannot be split: wanted a list, array or DataFrame, got {kind}"


# failures


def raised(number: int, raised: BaseException, *, where: str = "box cpu:0", **more: Any) -> Failure:
    end = {
        "status": "error",
        "ename": type(raised).__name__,
        "evalue": str(raised),
        "traceback": ["Traceback", f"{type(raised).__name__}: {raised}"],
        "error": base64.b64encode(pickle.dumps(raised)).decode(),
        **more,
    }
    return Failure(number, where, end)


def died(number: int, *, tail: str = "", lost: tuple[str, ...] = (), **more: Any) -> Failure:
    return Failure(number, "box cpu:1", {"status": "died", "how": "was killed by SIGKILL", "tail": tail, **more}, lost)


def shown(error: BaseException) -> str:
    """What IPython shows of it, without colours."""
    lines: list[str] = error._render_traceback_()  # type: ignore[attr-defined]
    return "\n".join(lines).replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_the_exception_is_the_one_that_was_raised() -> None:
    error = exception_of([raised(1, ZeroDivisionError("division by zero"))])
    assert type(error) is ZeroDivisionError
    assert error.args == ("division by zero",)


def test_the_traceback_says_where_it_was_raised() -> None:
    error = exception_of([raised(1, ValueError("x"))])
    assert shown(error) == "rank 1 (box cpu:0)\nTraceback\nValueError: x\n"


def test_plain_python_gets_the_traceback_as_a_note() -> None:
    error = exception_of([raised(1, ValueError("x"))])
    assert "rank 1 (box cpu:0)" in error.__notes__[0]


def test_equal_tracebacks_are_shown_once() -> None:
    error = exception_of([raised(n, ValueError("x"), where=f"box cpu:{n}") for n in (2, 0, 1)])
    assert shown(error).splitlines()[0] == "ranks 0-2 (box cpu:2, box cpu:0, box cpu:1)"
    assert shown(error).count("ValueError: x") == 1


def test_different_errors_are_all_shown_and_the_first_is_raised() -> None:
    error = exception_of([raised(1, KeyError("a")), raised(0, ValueError("b"))])
    assert type(error) is KeyError
    assert "rank 1 (box cpu:0)" in shown(error)
    assert "rank 0 (box cpu:0)\nTraceback\nValueError: b" in shown(error)


def test_ranks_that_were_stopped_are_no_cause() -> None:
    stopped = [raised(n, KeyboardInterrupt()) for n in (0, 2)]
    error = exception_of([stopped[0], raised(1, ValueError("x")), stopped[1]])
    assert type(error) is ValueError
    assert shown(error).splitlines()[-1] == "ranks 0,2 had to be stopped."
    assert "KeyboardInterrupt" not in shown(error)


def test_an_interrupt_that_nobody_caused_is_raised() -> None:
    assert type(exception_of([raised(0, KeyboardInterrupt())])) is KeyboardInterrupt


def test_an_error_of_an_unknown_type_is_told_by_its_name() -> None:
    broken = base64.b64encode(b"cnowhere\nNoSuchError\n.").decode()
    error = exception_of([raised(0, ValueError("x"), ename="NoSuchError", evalue="y", error=broken)])
    assert type(error) is RemoteError
    assert str(error) == "NoSuchError: y"


def test_what_is_no_exception_is_not_raised() -> None:
    text = base64.b64encode(pickle.dumps("text")).decode()
    error = exception_of([raised(0, ValueError("x"), error=text)])
    assert (type(error), str(error)) == (RemoteError, "ValueError: x")


def test_an_error_may_come_in_the_report_of_the_rank() -> None:
    report = {"error": base64.b64encode(pickle.dumps(OptionError("from the report"))).decode()}
    error = exception_of([raised(0, ValueError("x"), error=None, kalavai=report)])
    assert (type(error), str(error)) == (OptionError, "from the report")


def test_a_rank_that_died_says_how_and_what_was_lost() -> None:
    error = exception_of([died(1, lost=("model", "step"))])
    assert type(error) is RankDied
    assert str(error) == (
        "rank 1 (box cpu:1) was killed by SIGKILL. Lost with it: model, step. "
        "The next cell gets a new rank in its place."
    )


def test_a_rank_that_died_with_nothing_says_so() -> None:
    assert "It held no names." in str(exception_of([died(0)]))


def test_a_rank_that_ran_out_of_memory_says_so() -> None:
    assert "because the machine ran out of memory. It held" in str(exception_of([died(0, out_of_memory=True)]))


def test_a_rank_that_was_ended_because_another_failed_is_no_cause() -> None:
    ended = died(0, killed_because="rank 1 failed", lost=("model",))
    error = exception_of([ended, raised(1, ValueError("x"))])
    assert type(error) is ValueError
    assert shown(error).splitlines()[-1] == (
        "rank 0 (box cpu:1) was killed by SIGKILL since rank 1 failed. Lost with it: model. "
        "The next cell gets a new rank in its place."
    )


def test_a_rank_that_died_shows_its_last_words() -> None:
    tail = "\n".join(f"line {n}" for n in range(50))
    words = str(exception_of([died(0, tail=tail)])).split("It wrote last:\n")[1].splitlines()
    assert words == [f"line {n}" for n in range(50 - LAST_LINES, 50)]


def test_a_crash_shows_its_beginning_and_the_thread_that_crashed() -> None:
    others = "\n".join(f'  File "other.py", line {n}' for n in range(40))
    tail = (
        "said before\nFatal Python error: Segmentation fault\n\n"
        f"Thread 0x1 (most recent call first):\n{others}\n\n"
        'Current thread 0x2 (most recent call first):\n  File "cell.py", line 3 in crash\n\n'
        "Extension modules: numpy (total: 1)"
    )
    words = str(exception_of([died(0, tail=tail)])).split("It wrote last:\n")[1]
    assert words == (
        "Fatal Python error: Segmentation fault\nCurrent thread 0x2 (most recent call first):\n"
        '  File "cell.py", line 3 in crash'
    )


def test_a_crash_in_the_first_thread_is_shown_too() -> None:
    tail = 'Fatal Python error: Aborted\n\nCurrent thread 0x2 (most recent call first):\n  File "a.py", line 1 in f\n'
    words = str(exception_of([died(0, tail=tail)])).split("It wrote last:\n")[1].splitlines()
    assert words[0] == "Fatal Python error: Aborted"
    assert words[-1] == '  File "a.py", line 1 in f'


# the pool as a table

POOL = Snapshot(
    pool="lab",
    time=100.0,
    devices=(
        device(0),
        device(1),
        device(0, kind="cpu", name="EPYC", host="desk", machine="m1", memory_bytes=GIB // 2),
    ),
    leases=(
        Lease("l0", "ada", "ada.ipynb", "session", ("d1",), 1.0, True, 40.0),
        Lease("l1", "bob", "b.ipynb", "session", ("d1",), 1.0, False, 88.0),
    ),
    queue=(Waiting("r", "bob", "b.ipynb", 2, 90.0, "1st in the queue"),),
    owners={"ada": "ada.ipynb", "bob": "b.ipynb"},
)


def test_a_pool_is_told_in_lines() -> None:
    assert snapshot_text(POOL).splitlines() == [
        "pool of lab: 3 devices, 2 machines, 2 owners",
        "#  device      kind  name         memory            state",
        "0  box cuda:0  cuda  NVIDIA A100  80.0 GiB          free",
        "1  box cuda:1  cuda  NVIDIA A100  80.0 GiB          ada.ipynb: runs a session; b.ipynb: session idle for 12 s",
        "2  desk cpu:0  cpu   EPYC         0.5 GiB (shared)  free",
        "waiting: b.ipynb for 2 devices; 1st in the queue",
    ]


def test_who_looks_is_called_you() -> None:
    assert "you: session idle for 12 s" in snapshot_text(POOL, "bob")
    assert "ada.ipynb: runs a session" in snapshot_text(POOL, "bob")


def test_an_empty_pool_has_a_table_too() -> None:
    assert snapshot_text(Snapshot("lab", 0.0)).splitlines() == [
        "pool of lab: 0 devices, 0 machines, 0 owners",
        "#  device  kind  name  memory  state",
    ]


def test_one_of_each_is_singular() -> None:
    one = Snapshot("lab", 0.0, (device(0),), owners={"ada": "ada.ipynb"})
    assert snapshot_text(one).splitlines()[0] == "pool of lab: 1 device, 1 machine, 1 owner"


def test_whoever_waits_for_one_device_waits_for_one_device() -> None:
    waiting = Snapshot("lab", 0.0, queue=(Waiting("r", "bob", "b.ipynb", 1, 0.0, "1st in the queue"),))
    assert snapshot_text(waiting).splitlines()[-1] == "waiting: b.ipynb for 1 device; 1st in the queue"


def test_names_cannot_write_html() -> None:
    evil = Snapshot("<b>", 0.0, (device(0, name="<script>"),), queue=(Waiting("r", "o", "<i>", 1, 0.0, "<u>"),))
    text = snapshot_html(evil)
    assert not any(tag in text for tag in ("<b>", "<script>", "<i>", "<u>"))
    assert "&lt;script&gt;" in text


# a pool of machines that were measured


def test_devices_that_were_timed_have_their_speed_beside_their_name() -> None:
    timed = Snapshot("lab", 0.0, (device(0, flops=3.12e14), device(1, flops=9.5e10), device(2)))
    assert [line.split("  NVIDIA A100  ")[1].strip() for line in snapshot_text(timed).splitlines()[2:]] == [
        "312 TFLOP/s  80.0 GiB  free",
        "95 GFLOP/s   80.0 GiB  free",
        "n/a          80.0 GiB  free",
    ]
    assert snapshot_text(timed).splitlines()[1].split() == ["#", "device", "kind", "name", "speed", "memory", "state"]


def test_ways_between_few_machines_are_told_one_by_one_and_of_many_only_how_many() -> None:
    few = (Machine("m0", "vm", links="desk by the gate"), Machine("m1", "vm"))
    assert snapshot_text(Snapshot("lab", 0.0, (device(0),), machines=few)).splitlines()[-1] == (
        "from box: desk by the gate"
    )
    many = tuple(Machine(f"m{number}", "box", links="x") for number in range(9))
    links = (Link("m0", "m1", True), Link("m1", "m0", False))
    assert snapshot_text(Snapshot("lab", 0.0, (device(0),), machines=many, links=links)).splitlines()[-1] == (
        "2 ways between machines: 1 direct, 1 by the gate"
    )
