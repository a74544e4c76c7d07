"""Files of owners: what is written is read, and whatever else lies there changes nothing and is said once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kalavai_nb.registry import Entry, Order, directory
from kalavai_nb.registry.asking import VERBS, ask, take_back, take_reply
from kalavai_nb.registry.entry import MOST_ORDER_BYTES, ORDERS_AT_ONCE
from kalavai_nb.registry.forms import Unfit
from kalavai_nb.registry.published import Published, parse
from kalavai_nb.registry.reader import MOST_FILE_BYTES, MOST_FILES, MOST_SENTENCES, Reader

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "snapshot.json").read_bytes())
NAME = "p-1-abcd"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "runtime" / "kalavai_nb"


@pytest.fixture
def entry(place: Path) -> Iterator[Entry]:
    entry = Entry("9f3c2a7b1d4e", "Client-ada", "ada.ipynb (812)", True, place)
    yield entry
    entry.remove()


def reader(place: Path) -> tuple[Reader, list[str]]:
    said: list[str] = []
    return Reader(said.append, place), said


def file_of(**changes: Any) -> dict[str, Any]:
    file = {
        "version": 1,
        "sequence": 1,
        "interval_seconds": 1.0,
        "pid": os.getpid(),
        "host": "laptop",
        "machine": "laptop-0a1b2c",
        "owner": "Client-ada",
        "label": "ada.ipynb (812)",
        "link": "live",
        "reason": "",
        "can_invite": True,
        "snapshot": GOLDEN,
    }
    return {**file, **changes}


def put(place: Path, content: bytes, name: str = f"{NAME}.json") -> Path:
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / name).write_bytes(content)
    return place / name


# what an owner writes


def test_a_written_entry_is_read_whole_and_private(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    entry.write(GOLDEN, "lost", "the head is gone")
    look, said = reader(place)
    [(name, read)] = look.look().items()
    assert name == entry.name
    assert read.snapshot == GOLDEN
    assert (read.pool, read.owner, read.label, read.sequence) == ("9f3c2a7b1d4e", "Client-ada", "ada.ipynb (812)", 2)
    assert (read.link, read.reason, read.can_invite, read.pid) == ("lost", "the head is gone", True, os.getpid())
    assert not said
    modes = {each.name: each.stat().st_mode & 0o777 for each in [place, *place.iterdir()]}
    assert modes == {"kalavai_nb": 0o700, f"{entry.name}.json": 0o600, f"{entry.name}.inbox": 0o700}


def test_an_entry_comes_back_where_its_directory_was_deleted(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    entry.remove()
    entry.remove()
    assert list(place.iterdir()) == []
    place.rmdir()
    entry.remove()
    assert entry.orders() == []
    entry.write(GOLDEN)
    assert reader(place)[0].look().keys() == {entry.name}


def test_what_is_no_number_is_left_out(place: Path, entry: Entry) -> None:
    machine = {"host": "box", "utilisation": float("nan"), "cores": 4}
    entry.write({**GOLDEN, "machines": {"m": machine}})
    [read] = reader(place)[0].look().values()
    assert read.snapshot["machines"] == {"m": {"host": "box", "cores": 4}}


def test_a_forked_child_leaves_the_entry_alone(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    child = os.fork()
    if not child:
        entry.write({})
        entry.remove()
        os._exit(0 if entry.orders() == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [read.sequence for read in reader(place)[0].look().values()] == [1]


def test_odd_ids_of_pools_make_no_paths(place: Path) -> None:
    entry = Entry("../../etc/é", "o", "l", False, place)
    entry.write(GOLDEN)
    assert reader(place)[0].look().keys() == {entry.name}
    assert not set("/.é") & set(entry.name)


def test_where_it_is_usually(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    assert directory() == tmp_path / "kalavai_nb"


# what a server reads


def test_a_file_is_read_once_for_each_change(place: Path, entry: Entry) -> None:
    look, _ = reader(place)
    assert look.look() == {}
    entry.write(GOLDEN)
    for _ in range(5):
        look.look()
    assert look.files_read == 1
    entry.write(GOLDEN)
    assert [read.sequence for read in look.look().values()] == [2]
    assert look.files_read == 2


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.json"
    elsewhere.write_text(json.dumps(file_of()))
    path.symlink_to(elsewhere)


def huge(path: Path) -> None:
    path.write_text(json.dumps(file_of(padding="x" * MOST_FILE_BYTES)))


def of_somebody_else(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    path.write_text(json.dumps(file_of()))
    os.chown(path, 65534, -1)


def holds(content: bytes | dict[str, Any]) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode()))


def void(_: object) -> None: ...


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (fifo, "it is no plain file"),
    "directory": (Path.mkdir, "it is no plain file"),
    "link": (link, "it is no plain file"),
    "link to nowhere": (lambda path: path.symlink_to("nowhere"), "it is no plain file"),
    "huge": (huge, "it is larger than 4096 KiB"),
    "of somebody else": (of_somebody_else, "it belongs to another user"),
    "empty": (holds(b""), "it is no JSON"),
    "half": (holds(json.dumps(file_of()).encode()[:-9]), "it is no JSON"),
    "binary": (holds(bytes(range(256))), "it is no JSON"),
    "deep": (holds(b"[" * 200_000), "it is nested too deeply"),
    "list": (holds(b"[]"), "it is not of version 1"),
    "newer": (holds(file_of(version=2)), "it was written by a newer kalavai_nb, in version 2"),
    "newer snapshot": (holds(file_of(snapshot={**GOLDEN, "version": 3})), "newer kalavai_nb, in version 3"),
    "version true": (holds(file_of(version=True)), "it is not of version 1"),
    "no snapshot": (holds(file_of(snapshot=None)), "it 'snapshot' should be an object"),
    "no pool": (holds(file_of(snapshot={**GOLDEN, "id": ""})), "it 'snapshot' 'id' should be a name"),
    "proto": (holds(file_of(owner="__proto__")), "it 'owner' should be a name"),
    "pid of all": (holds(file_of(pid=-1)), "it 'pid' should be the id of a process"),
    "link of a kind": (holds(file_of(link="fine")), "it 'link' should be one of live, lost"),
    "time of no clock": (holds(file_of(snapshot={**GOLDEN, "time": float("nan")})), "'time' should be a number"),
    "time of another clock": (holds(file_of(snapshot={**GOLDEN, "time": 10**400})), "'time' should be a number"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_file_of_ours_is_said_once_and_ignored(place: Path, entry: Entry, kind: str) -> None:
    make, why = HOSTILE[kind]
    entry.write(GOLDEN)
    make(place / f"{NAME}.json")
    look, said = reader(place)
    for _ in range(3):
        assert look.look().keys() == {entry.name}
    assert len(said) == 1
    assert f"{NAME}.json' in {str(place)!r} is ignored: " in said[0]
    assert why in said[0]


def test_it_heals_and_is_said_again_when_it_breaks_again(place: Path) -> None:
    look, said = reader(place)
    file = put(place, b"{")
    assert look.look() == {}
    put(place, json.dumps(file_of()).encode())
    assert look.look().keys() == {NAME}
    file.unlink()
    look.look()
    put(place, b"{")
    look.look()
    assert len(said) == 2


def test_odd_names_are_ignored(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    good = json.dumps(file_of()).encode()
    odd = ["p-1-abcd.json.json", "p-1-ABCD.json", "p+-1-abcd.json", "p\n-1-abcd.json", "é-1-abcd.json", "x"]
    for name in odd:
        put(place, good, name)
    (place / os.fsdecode(b"\xff-1-abcd.json")).write_bytes(good)
    # somebody's passing file
    put(place, good, "..-1-abcd.json")
    look, said = reader(place)
    for _ in range(2):
        assert look.look().keys() == {entry.name}
    assert len(said) == len(odd) + 1
    for sentence in said:
        # what goes into a log can be written to it, on one line
        sentence.encode()
        assert "\n" not in sentence


def test_a_flood_of_rubbish_does_not_fill_the_log(place: Path) -> None:
    for number in range(MOST_SENTENCES + 50):
        put(place, b"", f"rubbish {number}")
    look, said = reader(place)
    look.look()
    look.look()
    assert len(said) == MOST_SENTENCES


def test_files_of_owners_that_are_no_more_do_not_hide_one_that_lives(place: Path) -> None:
    content = json.dumps(file_of()).encode()
    for number in range(MOST_FILES + 44):
        old = put(place, content, f"a-1-{number:04x}.json")
        os.utime(old, (number, number))
    live = Entry("z", "Client-ada", "ada.ipynb (812)", True, place)
    live.write(GOLDEN)
    look, said = reader(place)
    shown = look.look()
    assert live.name in shown
    assert len(shown) == MOST_FILES
    assert ["256 are shown" in sentence for sentence in said] == [True]
    # what is shown stays the same, so that those that have ended are found out, and taken away
    assert look.look().keys() == shown.keys()
    for name in shown.keys() - {live.name}:
        look.remove(name)
    assert look.look().keys() - shown.keys() == {f"a-1-{number:04x}" for number in range(45)}
    live.remove()


@pytest.mark.parametrize("kind", ["link", "open to all", "file", "of somebody else"])
def test_a_directory_that_is_not_ours_alone_is_refused_by_both_sides(place: Path, kind: str) -> None:
    place.parent.mkdir()
    if kind == "file":
        place.touch()
    elif kind == "link":
        (place.parent / "other").mkdir()
        place.symlink_to("other")
    else:
        place.mkdir(mode=0o700)
        if kind == "open to all":
            place.chmod(0o770)
        elif os.geteuid():
            pytest.skip("only root can give directories away")
        else:
            os.chown(place, 65534, -1)
    entry = Entry("p", "o", "l", True, place)
    with pytest.raises(OSError, match=r"has to be a directory|can be written by others|belongs to another user"):
        entry.write(GOLDEN)
    look, said = reader(place)
    assert look.look() == look.look() == {}
    assert len(said) == 1
    assert said[0].startswith("pools cannot be shown: ")
    entry.remove()


def test_the_golden_snapshot_fits_as_it_is() -> None:
    assert parse(json.dumps(file_of()).encode()).snapshot == GOLDEN


def test_what_is_unknown_or_of_a_wrong_shape_is_left_out() -> None:
    device = GOLDEN["devices"]["GPU-11111111-2222"]
    bad = {
        **GOLDEN,
        "surprise": {"deep": [1]},
        "devices": {
            "good": {**device, "extra": 1, "reading": {"utilisation": "high", "note": "x" * 9999, "power_watts": 1}},
            "no machine": {**device, "machine": None},
            "text": "device",
            "__proto__": device,
            "k" * 300: device,
        },
        "events": [{"time": 1, "kind": "x", "text": str(number)} for number in range(50)] + ["?", None],
        "alerts": {"a": {"kind": "idle", "text": "t", "device": 3}},
        "owners": {"o": {}},
        "models": {"m": {"owner": "o", "name": "n", "stages": [{"device": "d", "layers": [1]}]}},
    }
    del bad["sweeps"]
    read = parse(json.dumps(file_of(snapshot=bad, surprise=1)).encode()).snapshot
    assert "surprise" not in read
    assert read["devices"].keys() == {"good"}
    assert read["devices"]["good"]["reading"] == {"note": "x" * 500, "power_watts": 1}
    assert "extra" not in read["devices"]["good"]
    # the last twenty, and what is none of them is not there
    assert [event["text"] for event in read["events"]] == [str(number) for number in range(32, 50)]
    assert read["alerts"] == {"a": {"kind": "idle", "text": "t"}}
    # what is missing is empty, where there is an empty one
    assert read["owners"] == {"o": {"label": ""}}
    assert read["sweeps"] == {}
    assert read["models"] == {"m": {"owner": "o", "name": "n", "state": "", "stages": [], "spares": []}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("__proto__"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def paths(value: Any) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, each in inner for path in paths(each))]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(paths(file_of())[1:]), JSON), min_size=1, max_size=4))
def test_whatever_is_wrong_in_a_file_what_is_read_is_strict_json_of_the_known_keys(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    file = json.loads(json.dumps(file_of()))
    for path, value in changes:
        place = file
        try:
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
        except (TypeError, KeyError, IndexError):  # one change took away what another wanted to change
            continue
    try:
        read = parse(json.dumps(file).encode())
    except Unfit:
        return
    assert isinstance(read, Published)
    assert json.loads(json.dumps(read.snapshot, allow_nan=False)) == read.snapshot
    assert read.snapshot.keys() == GOLDEN.keys()
    assert "__proto__" not in json.dumps(list(paths(read.snapshot)))


# orders


def test_an_order_goes_there_and_its_answer_back(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    id = ask(place, entry.name, "stop_sweep", "Client-ada/lr")
    assert take_reply(place, entry.name, id) is None
    [order] = entry.orders()
    assert order == Order(id, "stop_sweep", "Client-ada/lr")
    assert entry.orders() == []
    entry.reply(order, True, "lr is stopped; 3 of 11 trials are done and kept.")
    reply = take_reply(place, entry.name, id)
    assert reply
    assert (reply.ok, reply.text) == (True, "lr is stopped; 3 of 11 trials are done and kept.")
    assert take_reply(place, entry.name, id) is None
    assert list((place / f"{entry.name}.inbox").iterdir()) == []


def test_an_order_that_was_taken_back_is_not_done(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    first, second = (ask(place, entry.name, "invite", "") for _ in range(2))
    assert take_back(place, entry.name, first)
    assert [order.id for order in entry.orders()] == [second]
    assert not take_back(place, entry.name, second)


def test_orders_come_oldest_first(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    ids = [ask(place, entry.name, "invite", str(number)) for number in range(8)]
    inbox = place / f"{entry.name}.inbox"
    for age, id in enumerate(ids):
        os.utime(inbox / f"{id}.json", (1000 - age, 1000 - age))
    assert [order.id for order in entry.orders()] == ids[::-1]


def test_what_is_no_order_is_deleted_and_ignored(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    inbox = place / f"{entry.name}.inbox"
    outside = place.parent / "outside.json"
    outside.write_text("{}")
    good = {"verb": "invite", "target": ""}
    names = iter(f"{number:016x}.json" for number in range(1, 99))

    def id_of(name: str) -> str:
        return name[:16]

    (inbox / next(names)).symlink_to(outside)
    os.mkfifo(inbox / next(names))
    (inbox / next(names)).write_text("{")
    (inbox / next(names)).write_text("[" * 100_000)
    (inbox / next(names)).write_text(json.dumps({**good, "id": "0" * 16}))
    for change in ({"verb": 1}, {"target": None}, {"target": "x" * 600}, {"target": "x" * MOST_ORDER_BYTES}):
        name = next(names)
        (inbox / name).write_text(json.dumps({"id": id_of(name), **good, **change}))
    if not os.geteuid():
        name = next(names)
        (inbox / name).write_text(json.dumps({"id": id_of(name), **good}))
        os.chown(inbox / name, 65534, -1)
    # a directory cannot be deleted as a file; what has another name is somebody's passing file
    (inbox / next(names)).mkdir()
    (inbox / ".0.json.1").write_text("{}")
    id = ask(place, entry.name, "invite", "")
    assert [order.id for order in entry.orders()] == [id]
    assert sorted(each.is_dir() for each in inbox.iterdir()) == [False, True]
    assert outside.exists()


def test_a_flood_of_orders_comes_in_portions(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    given = {ask(place, entry.name, "invite", "") for _ in range(ORDERS_AT_ONCE + 5)}
    first, second = entry.orders(), entry.orders()
    assert (len(first), len(second)) == (ORDERS_AT_ONCE, 5)
    assert {order.id for order in first + second} == given


def test_an_inbox_that_is_a_link_is_not_used(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    inbox, other = place / f"{entry.name}.inbox", place.parent / "other"
    inbox.rmdir()
    other.mkdir()
    inbox.symlink_to(other)
    (other / f"{'a' * 16}.json").write_text("{}")
    with pytest.raises(OSError, match="no link"):
        entry.orders()
    with pytest.raises(OSError, match="no link"):
        ask(place, entry.name, "invite", "")
    assert not take_back(place, entry.name, "a" * 16)
    entry.remove()
    assert [each.name for each in other.iterdir()] == [f"{'a' * 16}.json"]


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"ok": true}', b'{"ok": true, "text": 3}', b"x" * 300_000])
def test_an_answer_that_is_none_is_said_to_be_none(place: Path, entry: Entry, content: bytes) -> None:
    entry.write(GOLDEN)
    id = ask(place, entry.name, "invite", "")
    (place / f"{entry.name}.inbox" / f"{id}.reply").write_bytes(content)
    reply = take_reply(place, entry.name, id)
    assert reply
    assert (reply.ok, reply.text) == (False, "the notebook gave an answer that cannot be read.")
    assert take_reply(place, entry.name, id) is None


def test_orders_are_seen_whole_or_not_at_all(place: Path, entry: Entry) -> None:
    entry.write(GOLDEN)
    target, wanted, over = "t" * 500, 200, threading.Event()

    def give() -> None:
        for _ in range(wanted):
            ask(place, entry.name, "release", target)
        over.set()

    thread = threading.Thread(target=give)
    thread.start()
    got: list[Order] = []
    while True:
        # what is not seen after the last was given is lost
        last = over.is_set()
        seen = entry.orders()
        got += seen
        if last and not seen:
            break
    thread.join()
    assert len({order.id for order in got}) == len(got) == wanted
    assert {order.target for order in got} == {target}


def test_the_orders_are_those_that_a_pool_can_carry_out() -> None:
    from kalavai_nb import orders

    assert set(VERBS) == set(orders.VERBS)


def test_nothing_heavy_is_loaded_for_the_files() -> None:
    code = "import sys, kalavai_nb.registry; print({'dask', 'distributed', 'torch', 'tornado'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
