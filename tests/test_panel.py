"""The panel, by real kernels and the messages that a front end would send to them."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_snapshot import ADA, BOB, CUDA, SNAPSHOT

from kalavai_nb.panel.part import part_of_sweep
from kalavai_nb.snapshot import Alert, Event
from kalavai_nb.table import LINE_CHARACTERS, duration, snapshot_html, snapshot_text
from notebook import Notebook

WIDGET = "application/vnd.jupyter.widget-view+json"
# a panel as the pool makes one, with a thread that updates it; what is asked of it is noted with the time it came
MAKE = """
import os, pathlib, threading, time
import kalavai_nb.panel.panel as module
module.STATIC = pathlib.Path({static!r})
asked = []

def order(verb, target):
    asked.append((time.time(), verb, target, threading.current_thread() is threading.main_thread()))
    if verb == "fail":
        raise ValueError("no such thing")
    time.sleep(0.2)
    return True, f"{{verb}} {{target}} is done"

def state(n, cells=()):
    snapshot = {{"version": 1, "time": float(n), "cells": {{each: {{}} for each in cells}}}}
    return {{"version": 1, "pools": {{"p": {{"snapshot": snapshot, "owners": {{}}}}}}}}

number = 0
def picture():
    return {{"text/plain": f"picture {{number}}", "text/html": f"<p>picture {{number}}</p>"}}

def update(n, cells=()):
    global number
    number = n
    panel.update(state(n, cells))

panel = module.Panel(state(0), picture, order{more})
"""


class Front(Notebook):
    """A front end with widgets: it keeps what comms say, and says things to them."""

    def tell(self, comm: str, data: dict[str, Any]) -> None:
        """As the front end does it: on the shell channel."""
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        self.client.shell_channel.send(message)

    def count_views(self, comm: str, views: int) -> None:
        self.tell(comm, {"method": "update", "state": {"_view_count": views}, "buffer_paths": []})

    def press(self, comm: str, verb: str, target: str) -> str:
        id = secrets.token_hex(8)
        self.tell(comm, {"method": "custom", "content": {"id": id, "verb": verb, "target": target}})
        return id

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20.0) -> dict[str, Any]:
        """The first message that is wanted."""
        deadline = time.monotonic() + seconds
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.01, deadline - time.monotonic()))
            if wanted(message):
                return dict(message)

    def answer(self, comm: str, id: str) -> dict[str, Any]:
        found = self.until(lambda message: said_by(comm, message).get("content", {}).get("id") == id)
        return dict(found["content"]["data"]["content"])


def said_by(comm: str, message: dict[str, Any]) -> dict[str, Any]:
    """What this comm says in this message, if it is one of its own."""
    is_its = message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm
    return dict(message["content"]["data"]) if is_its else {}


def a_panel(front: Front, static: Path, more: str = "") -> tuple[str, list[dict[str, Any]]]:
    """Make and display one: the id of its model, and the messages of the cell that displayed it."""
    front.ok(MAKE.format(static=str(static), more=more))
    cell = front.ok("panel")
    messages = [message for _, message in cell.messages]
    shown = [m["content"]["data"] for m in messages if m["msg_type"] == "display_data"]
    model = next((data[WIDGET]["model_id"] for data in shown if WIDGET in data), "")
    return model, messages


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view that is not there to be looked at: no browser runs here."""
    directory = tmp_path_factory.mktemp("static")
    (directory / "panel.js").write_text("export default { render() {} }")
    return directory


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(cwd=str(tmp_path_factory.mktemp("notebook"))) as front:
        yield front


def test_a_display_is_a_live_view_and_a_still_picture(front: Front, static: Path) -> None:
    model, messages = a_panel(front, static)
    shown = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    opens = [m["content"] for m in messages if m["msg_type"] == "comm_open"]
    [opened] = [content for content in opens if content["comm_id"] == model]
    assert opened["data"]["state"]["state"]["pools"]["p"]["snapshot"]["time"] == 0.0
    assert opened["data"]["state"]["_view_count"] == 0
    # a viewer without widgets shows nothing in the place of the first, and all of the second
    assert [sorted(content["data"]) for content in shown] == [
        sorted([WIDGET, "text/html", "text/plain"]),
        ["text/html", "text/plain"],
    ]
    assert shown[0]["data"]["text/plain"] == ""
    assert "picture 0" in shown[1]["data"]["text/html"]
    still = shown[1]["transient"]["display_id"]
    assert f"kn-still-{still}" in shown[1]["data"]["text/html"]
    assert f".kn-still-{still} {{ display: none }}" in opened["data"]["state"]["hides"]


def test_an_order_is_done_and_answered_while_a_cell_blocks(front: Front, static: Path) -> None:
    model, _ = a_panel(front, static)
    request = front.begin("print('begins', flush=True); time.sleep(4); print('ends')")
    front.wait_for_text(request, "begins")
    pressed = time.time()
    id = front.press(model, "stop_sweep", "lr")
    assert front.answer(model, id) == {"id": id, "ok": True, "text": "stop_sweep lr is done"}
    took = time.time() - pressed
    cell = front.finish(request)
    assert "ends" in cell.stream()
    assert took < 1.2  # 0.2 s of it for the order
    # once, though its message has also been handled when the cell had ended, and not by the kernel's main thread
    front.ok("pass")
    assert front.ok("print([each[1:] for each in asked])").stream().strip() == "[('stop_sweep', 'lr', False)]"


def test_what_threads_of_a_cell_print_stays_with_the_cell_after_an_order(front: Front, static: Path) -> None:
    model, _ = a_panel(front, static)
    request = front.begin(
        "go = threading.Event()\n"
        "thread = threading.Thread(target=lambda: (go.wait(), print('from a thread', flush=True)))\n"
        "thread.start(); print('begins', flush=True)\n"
        "while not asked: time.sleep(0.05)\n"
        "time.sleep(0.5); go.set(); thread.join()"
    )
    front.wait_for_text(request, "begins")
    front.press(model, "stop_sweep", "lr")
    assert "from a thread" in front.finish(request).stream()


def test_a_kernel_that_does_not_ask_comms_answers_after_the_cell(front: Front, static: Path) -> None:
    front.ok(
        "import ipykernel.comm.comm as c; kept = c.BaseComm._reply_subshell_for; del c.BaseComm._reply_subshell_for"
    )
    try:
        model, _ = a_panel(front, static)
        request = front.begin("print('begins', flush=True); time.sleep(1); ended = time.time()")
        front.wait_for_text(request, "begins")
        id = front.press(model, "release", "lease-1")
        assert front.answer(model, id)["ok"]
        assert front.ok("print(asked[0][0] >= ended, asked[0][3], len(asked))").stream().strip() == "True False 1"
    finally:
        front.ok("c.BaseComm._reply_subshell_for = kept")


def test_an_order_that_fails_is_answered_and_what_is_none_is_ignored(front: Front, static: Path) -> None:
    model, _ = a_panel(front, static)
    for content in (None, 3, {}, {"id": 1, "verb": "a", "target": "b"}, {"id": "x" * 600, "verb": "a", "target": "b"}):
        front.tell(model, {"method": "custom", "content": content})
    for data in ({}, {"method": "update"}, {"method": "update", "state": {"_view_count": "many"}}):
        front.tell(model, data)
    id = front.press(model, "fail", "")
    assert front.answer(model, id) == {"id": id, "ok": False, "text": "ValueError: no such thing"}
    assert front.ok("print([each[1] for each in asked])").stream().strip() == "['fail']"


def test_a_thread_updates_it_while_a_cell_blocks_and_nothing_is_sent_while_nobody_looks(
    front: Front, static: Path
) -> None:
    model, _ = a_panel(front, static)
    request = front.begin(
        "def watch():\n"
        "    update(1); update(1)\n"  # equal: sent once
        "    while panel._views != 1: time.sleep(0.01)\n"
        "    update(2)\n"
        "    while panel._views != 0: time.sleep(0.01)\n"
        "    update(3); update(4)\n"
        "    print('missed', flush=True)\n"
        "    while panel._views != 2: time.sleep(0.01)\n"
        "    update(5)\n"
        "thread = threading.Thread(target=watch); thread.start(); thread.join()"
    )
    sent = []

    def shown(message: dict[str, Any]) -> float:
        if state := said_by(model, message).get("state", {}).get("state"):
            sent.append(state["pools"]["p"]["snapshot"]["time"])
        return sent[-1] if sent else 0.0

    front.until(lambda message: shown(message) == 1)
    front.count_views(model, 1)
    front.until(lambda message: shown(message) == 2)
    front.count_views(model, 0)
    front.until(lambda message: shown(message) < 0 or "missed" in str(message["content"]))
    front.count_views(model, 2)
    front.until(lambda message: shown(message) == 5)
    assert front.finish(request).status == "ok"
    assert sent == [1, 2, 5]


def test_the_still_picture_is_renewed_when_things_have_come_to_rest(front: Front, static: Path) -> None:
    model, messages = a_panel(front, static)
    still = [m for m in messages if m["msg_type"] == "display_data"][1]["content"]["transient"]["display_id"]
    front.count_views(model, 1)
    cell = front.ok(
        "while panel._views != 1: time.sleep(0.01)\n"
        "for n, cells in enumerate(['', '', 'a', 'a', 'b', '', '', '', ''], start=1): update(n, cells)"
    )
    renewed = [m["content"] for _, m in cell.messages if m["msg_type"] == "update_display_data"]
    # at its second restful moment: what was leased is given back then
    assert [(each["transient"]["display_id"], "picture 7" in each["data"]["text/plain"]) for each in renewed] == [
        (still, True)
    ]
    front.ok("module.STILL_SECONDS = 0.0")
    cell = front.ok("update(10, 'a'); update(11, 'a')")
    assert sum(m["msg_type"] == "update_display_data" for _, m in cell.messages) == 2


@pytest.mark.parametrize("why", ["widget=False", "no view", "nobody counts"])
def test_where_no_widget_lives_the_picture_is_live(front: Front, static: Path, tmp_path: Path, why: str) -> None:
    more = ", widget=False" if why == "widget=False" else ""
    model, _ = a_panel(front, tmp_path if why == "no view" else static, more)
    assert bool(model) is (why == "nobody counts")
    cell = front.ok("for n in (1, 2, 2): update(n)")
    renewed = [m["content"]["data"] for _, m in cell.messages if m["msg_type"] == "update_display_data"]
    assert ["picture 1" in renewed[0]["text/html"], "picture 2" in renewed[1]["text/html"], len(renewed)] == [
        True,
        True,
        2,
    ]


def test_closing_leaves_the_last_state_in_all_places(front: Front, static: Path) -> None:
    model, _ = a_panel(front, static)
    front.ok("panel")
    front.count_views(model, 2)
    front.ok("while panel._views != 2: time.sleep(0.01)")
    cell = front.ok("number = 9; panel.close(); panel.close(); panel.update(state(10)); print(panel.closed)")
    closed = [m["content"]["comm_id"] for _, m in cell.messages if m["msg_type"] == "comm_close"]
    assert model in closed
    [last] = [m["content"]["data"] for _, m in cell.messages if m["msg_type"] == "update_display_data"]
    assert "picture 9" in last["text/html"]
    assert cell.stream().strip() == "True"
    [picture] = front.ok("panel").displays
    assert WIDGET not in picture


def test_a_fork_is_harmless(front: Front, static: Path) -> None:
    a_panel(front, static)
    cell = front.ok(
        "import multiprocessing\n"
        "def child(): update(5); panel.close()\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "process = multiprocessing.get_context('fork').Process(target=child)\n"
        "process.start(); process.join(); print(process.exitcode, panel.closed)"
    )
    assert cell.stream().strip() == "0 False"
    assert not [m for _, m in cell.messages if m["msg_type"] in ("comm_msg", "comm_close", "update_display_data")]


def test_thousands_of_updates_leave_nothing_behind(front: Front, static: Path) -> None:
    model, _ = a_panel(front, static)
    front.count_views(model, 1)
    kept = front.ok(
        "import gc, tracemalloc, ipywidgets.widgets.widget as w\n"
        "while panel._views != 1: time.sleep(0.01)\n"
        "def many():\n"
        "    for n in range(1500): update(n, 'a' * (n % 3 > 0)); panel._orders.take({'id': str(n), 'verb': 1})\n"
        "many(); threads = threading.active_count(); tracemalloc.start(); gc.collect()\n"
        "before = tracemalloc.get_traced_memory()[0]; widgets = len(w._instances)\n"
        "many(); time.sleep(0.5); gc.collect(); after = tracemalloc.get_traced_memory()[0]; tracemalloc.stop()\n"
        "print(after - before, len(w._instances) - widgets, threading.active_count() - threads)"
    )
    grown, widgets, threads = map(int, kept.stream().split())
    assert (widgets, threads) == (0, 0)
    assert grown < 300_000


def test_nothing_is_loaded_before_one_is_displayed_and_a_terminal_is_told_in_text() -> None:
    code = (
        "import sys; from kalavai_nb.panel.panel import Panel\n"
        "panel = Panel({}, lambda: {'text/plain': 'as it is', 'text/html': '<p>'}); panel.update({'pools': {}})\n"
        "print(repr(panel), [name for name in ('ipywidgets', 'anywidget', 'IPython') if name in sys.modules])\n"
        "panel.close(); panel.show(); print('anywidget' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["as it is []", "as it is", "False"], done.stderr


def test_a_sweep_is_stopped_by_a_button_while_its_cell_blocks(static: Path, tmp_path: Path) -> None:
    with Front(cwd=str(tmp_path), env={"JUPYTER_RUNTIME_DIR": str(tmp_path)}) as front:
        front.ok(
            "import pathlib, time, kalavai_nb as kn, kalavai_nb.panel.panel as module\n"
            f"module.STATIC = pathlib.Path({str(static)!r})\n"
            "pool = kn.Pool(devices=2, quiet=True)\n"
            f"at_work = pathlib.Path({str(tmp_path)!r})\n"
            "def slow(x):\n    (at_work / f'{x}.began').touch()\n    while True: time.sleep(0.05)\n"
        )
        shown = [m["content"]["data"] for _, m in front.ok("pool.panel()").messages if m["msg_type"] == "display_data"]
        model = shown[0][WIDGET]["model_id"]
        request = front.begin("pool.map(slow, [1, 2, 3], name='lr').wait()")
        sweeps: dict[str, Any] = {}

        def running(message: dict[str, Any]) -> bool:
            for pool in said_by(model, message).get("state", {}).get("state", {}).get("pools", {}).values():
                sweeps.update(pool["snapshot"]["sweeps"])
            return any(sweep["counts"].get("RUNNING") for sweep in sweeps.values())

        front.until(running, seconds=60)
        # a process that is just starting is not stopped as quickly as one that is at work
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.began"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pressed = time.monotonic()
        answer = front.answer(model, front.press(model, "stop_sweep", next(iter(sweeps))))
        assert answer["ok"], answer
        assert "lr is stopped" in answer["text"]
        assert front.finish(request).status == "ok"
        assert time.monotonic() - pressed < 3.0


def test_a_sweep_can_be_shown_alone() -> None:
    whole = {"version": 1, "pools": {"p": {"snapshot": SNAPSHOT.to_dict(), "owners": {}}}}
    part = part_of_sweep(whole, f"{ADA}/lr")["pools"]["p"]["snapshot"]
    assert part["sweeps"] == whole["pools"]["p"]["snapshot"]["sweeps"]
    assert [list(part[kind]) for kind in ("devices", "leases", "machines")] == [[CUDA], ["lease-1"], ["gpu-box-1-00aa"]]
    assert not any(part[kind] for kind in ("cells", "models", "queue", "events", "alerts"))
    none = part_of_sweep(whole, "another")["pools"]["p"]["snapshot"]
    assert not any(none[kind] for kind in ("devices", "leases", "sweeps", "machines"))


# the still picture


def test_a_pool_is_told_with_all_that_happens_there() -> None:
    lines = snapshot_text(SNAPSHOT, ADA, "the head is lost").splitlines()
    assert [line.rstrip() for line in lines] == [
        "pool of ada.ipynb (812): 3 devices, 2 machines, 2 owners; 71% in use",
        "the head is lost",
        "#  device            name              memory            use  temp   power      state",
        "0  gpu-box-1 cuda:0  RTX 4090          12.0/24.0 GiB     71%  66 °C  288/450 W  "
        "you: runs a trial for sweep lr",
        "1  gpu-box-1 cuda:1  A100 MIG 1g.10gb  1.0/10.0 GiB      n/a  n/a    n/a        "
        "its owner takes it back: 40 s left; bob…",
        "2  laptop cpu:0      EPYC 7B13         4.0 GiB (shared)  n/a  n/a    n/a        no news for 12 s; free",
        "! no news from laptop cpu:0 for 12 s",
        "waiting: bob.ipynb (9) for 2 devices; 1st in the queue; 1 of 2 devices free",
        "cell 7 of bob.ipynb (9) for 5 s on 2 ranks: train(model)",
        "sweep lr of you running [█████████···········] 5/11; 5 waiting, 1 running, 3 complete, 2 failed; "
        "about 42 s left; best:",
        "  accuracy=0.97 with lr=0.01; 2 × ValueError: too large",
        "model SmolLM2 of you running: 20.5 tokens/s, 2 requests; gpu-box-1 cuda:0 has layers 0 to 11; "
        "gpu-box-1 cuda:1 has",
        "  layers 12 to 29; spare: laptop cpu:0",
        "gpu-box-1 cuda:0 is lent with limits: 80 % of memory; 22:00-08:00; when idle; at most 250 W",
        "gpu-box-1 cuda:1: MIG: the driver gives no utilisation of an instance",
        "12 s ago: laptop cpu:0 is silent",
    ]


def test_lines_are_short_whatever_the_names() -> None:
    long = "a name that goes on and on " * 12
    devices = tuple(replace(device, name=long) for device in SNAPSHOT.devices)
    sweeps = tuple(replace(sweep, best=long, trouble=long) for sweep in SNAPSHOT.sweeps)
    leases = tuple(replace(lease, label=long) for lease in SNAPSHOT.leases)
    crowded = replace(SNAPSHOT, devices=devices, sweeps=sweeps, leases=leases, pool=long, owners={ADA: long, BOB: long})
    assert max(map(len, snapshot_text(crowded, "", long).splitlines())) == LINE_CHARACTERS


def test_bars_stand_beside_their_numbers_and_names_cannot_write_html() -> None:
    evil = "<script>'\"&"
    told = snapshot_html(
        replace(
            SNAPSHOT,
            pool=evil,
            devices=tuple(replace(device, name=evil, host=evil) for device in SNAPSHOT.devices),
            owners={ADA: evil, BOB: evil},
            leases=tuple(replace(lease, label=evil, what=evil) for lease in SNAPSHOT.leases),
            cells=tuple(replace(cell, text=evil) for cell in SNAPSHOT.cells),
            sweeps=tuple(replace(sweep, name=evil, best=evil, trouble=evil) for sweep in SNAPSHOT.sweeps),
            models=tuple(replace(model, name=evil, state=evil) for model in SNAPSHOT.models),
            events=(Event(0.0, "lost", evil),),
            alerts=(Alert("k", "lost", evil),),
            readings={id: replace(reading, note=evil) for id, reading in SNAPSHOT.readings.items()},
        ),
        note=evil,
    )
    assert "<script" not in told
    assert told.count("&lt;script&gt;&#x27;&quot;&amp;") == told.count("script&gt;") > 15
    assert re.findall(r"<meter value='([\d.]+)'[^>]*></meter> ([^<]+)<", told) == [
        ("0.50", "12.0/24.0 GiB"),
        ("0.71", "71%"),
        ("0.10", "1.0/10.0 GiB"),
    ]
    # no colour of its own, so that it is readable in dark and light
    assert "color" not in told
    # well-formed, so that what comes below it in a notebook stays whole
    ElementTree.fromstring(f"<div>{told}</div>")


def test_times_are_as_exact_as_people_need_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 119, 200, 3590, 7500)] == [
        "0 s",
        "119 s",
        "3 min",
        "1 h 0 min",
        "2 h 5 min",
    ]
