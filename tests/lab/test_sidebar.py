"""The sidebar over real pools: what is seen and when, what buttons do, what is sent while nobody looks."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from lab import Front, Lab
from notebook import Notebook
from nvml import build_stub, change, environment

READING_SECONDS = 2.5
STOP_SECONDS = 3.0


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def gpus(lab: Lab, stub: Path) -> Iterator[Notebook]:
    """A notebook with a pool of two NVIDIA GPUs, which are of a stub of their driver."""
    env = {**environment(stub, utilisation=10, temperature=55, name="NVIDIA GeForce RTX 4090"), **lab.env}
    with Notebook(env=env) as notebook:
        notebook.ok("import os\ndel os.environ['CUDA_VISIBLE_DEVICES']\n%load_ext kalavai_nb")
        notebook.ok("import kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        yield notebook


def test_a_reading_is_on_the_screen_in_time_also_while_a_cell_is_busy(gpus: Notebook, stub: Path, front: Front) -> None:
    first = front.sidebar.locator(".kn-device").first
    expect(first).to_contain_text("RTX 4090")
    expect(first.locator(".kn-meter-use")).to_have_text("10 %")
    expect(first).to_contain_text("55 °C")
    busy = gpus.begin("import time\nend = time.time() + 30\nwhile time.time() < end: pass")
    took = []
    # between two seconds, now here and now there
    for number, utilisation in enumerate((20, 90, 35, 70, 50)):
        front.page.wait_for_timeout(190 * number)
        started = time.monotonic()
        change(stub, utilisation=utilisation)
        expect(first.locator(".kn-meter-use")).to_have_text(f"{utilisation} %")
        took.append(time.monotonic() - started)
        width = first.locator(".kn-fill-use").evaluate("each => each.style.width")
        assert width == f"{utilisation}%"
    print(f"\nreading to pixel, seconds: median {statistics.median(took):.2f}, longest {max(took):.2f}")
    assert statistics.median(took) <= READING_SECONDS
    assert max(took) <= READING_SECONDS + 1
    gpus.interrupt()
    gpus.finish(busy)


def test_nothing_moves_while_numbers_change(gpus: Notebook, stub: Path, front: Front) -> None:
    rows = """nodes => nodes.map(node => {
        const box = node.getBoundingClientRect();
        return [box.x, box.y, box.width, box.height];
    })"""
    parts = front.sidebar.locator(".kn-device, .kn-device .kn-bar, .kn-device .kn-number, .kn-fold, button")
    boxes = []
    for utilisation in (0, 7, 100, 42):
        change(stub, utilisation=utilisation, temperature=40 + utilisation // 2, memory_used_mb=900 + 200 * utilisation)
        expect(front.sidebar.locator(".kn-meter-use").first).to_have_text(f"{utilisation} %")
        boxes.append(parts.evaluate_all(rows))
    assert boxes[0] == boxes[1] == boxes[2] == boxes[3]


def test_nothing_is_sent_while_the_sidebar_is_hidden_and_history_is_there_again(gpus: Notebook, front: Front) -> None:
    asked: list[str] = []
    front.page.on("request", lambda request: asked.append(request.url) if "kalavai-nb" in request.url else None)
    expect(front.sidebar.get_by_role("status").first).to_have_text("live")
    while front.sent < 2:
        front.page.wait_for_timeout(100)
    front.close_sidebar()
    front.page.wait_for_timeout(500)
    front.sent = 0
    # it would have been told three times
    front.page.wait_for_timeout(3500)
    assert front.sent == 0
    assert [url for url in asked if "summary" not in url] == []
    # some seconds have gone by since the pool was opened
    front.open_sidebar()
    line = front.sidebar.locator(".kn-spark-use").first
    expect(line).to_have_attribute("d", re.compile("M"))
    before = line.get_attribute("d")
    front.page.reload()
    front.page.wait_for_selector("#jp-main-dock-panel")
    if not front.sidebar.is_visible():
        front.open_sidebar()
    after = front.sidebar.locator(".kn-spark-use").first
    expect(after).to_have_attribute("d", re.compile("M"))
    assert len(after.get_attribute("d") or "") >= len(before or "") - 20


def test_a_sweep_is_stopped_from_the_sidebar_while_its_cell_blocks(
    gpus: Notebook, front: Front, tmp_path: Path
) -> None:
    # each says that it lives by a file of its own
    gpus.ok(
        "def slow(config):\n    import pathlib, time\n"
        f"    while True:\n        pathlib.Path({str(tmp_path)!r}, str(config)).touch()\n        time.sleep(0.05)"
    )
    cell = gpus.begin("pool.map(slow, range(9), name='slow', show=False).wait()")
    stop = front.sidebar.get_by_role("button", name="Stop the sweep slow; what is done is kept")
    expect(front.sidebar.locator(".kn-item:has(.kn-progress)", has_text="slow")).to_contain_text("2 running")
    pressed, started = time.time(), time.monotonic()
    stop.click()
    gpus.finish(cell)
    took = time.monotonic() - started
    front.page.wait_for_timeout(1000)
    trials = max(file.stat().st_mtime for file in tmp_path.iterdir()) - pressed
    print(f"\nstop pressed to cell ended: {took:.2f} s, to the last sign of a trial: {trials:.2f} s")
    assert max(took, trials) <= STOP_SECONDS
    assert len(list(tmp_path.iterdir())) == 2
    expect(front.sidebar.locator(".kn-item:has(.kn-progress)", has_text="slow")).to_contain_text("stopped")
    gpus.ok("kn.sweeps.forget('slow')")
    expect(front.sidebar.locator(".kn-item:has(.kn-progress)", has_text="slow")).to_have_count(0)


def test_two_pools_three_kernels_one_shared(gpus: Notebook, lab: Lab, front: Front) -> None:
    with Notebook(env=lab.env) as friend, Notebook(env=lab.env) as other:
        invite = gpus.ok("print(pool.invite())").stream().strip()
        opening = other.begin("import kalavai_nb as kn\npool = kn.Pool(devices=3, quiet=True)")
        friend.ok(f"import kalavai_nb as kn\npool = kn.Pool({invite!r}, quiet=True)")
        assert not other.finish(opening).error
        expect(front.sidebar.locator(".kn-totals")).to_contain_text("2 pools · 5 devices")
        expect(front.sidebar.locator(".kn-device")).to_have_count(5)
        expect(front.sidebar.locator(".kn-device", has_text="CPU stand-in")).to_have_count(3)
        cell = friend.begin("pool.run('import time; time.sleep(600)', gpus=1)")
        mine = front.sidebar.locator(".kn-item", has_text="time.sleep(600)")
        expect(mine).to_contain_text(f"you (notebook ({friend.pid}))")
        expect(front.page.locator(".kn-status")).to_contain_text("2 pools · 2 GPUs")
        mine.get_by_role("button", name="Stop").click()
        assert "KeyboardInterrupt" in friend.finish(cell).error
        for each in (other, friend):
            each.ok("pool.close()")
    expect(front.sidebar.locator(".kn-device")).to_have_count(2)


def test_commands_status_line_invite_and_cell(gpus: Notebook, browser: Browser, lab: Lab) -> None:
    front = Front(browser, lab, permissions=["clipboard-read", "clipboard-write"])
    page = front.page
    line = page.locator(".kn-status")
    expect(line).to_contain_text("1 pool · 2 GPUs")
    line.click()
    expect(front.sidebar).to_be_visible()
    front.close_sidebar()
    page.keyboard.press("Control+Shift+C")
    page.locator(".lm-CommandPalette-input").fill("show gpu pools")
    page.locator(".lm-CommandPalette-item", has_text="Show GPU Pools").click()
    expect(front.sidebar).to_be_visible()
    front.sidebar.get_by_role("button", name="Copy invite").click()
    expect(front.sidebar.get_by_text("Copied.")).to_be_visible()
    invite = page.evaluate("navigator.clipboard.readText()")
    gpus.ok(f"with kn.Pool({invite!r}, quiet=True) as again: assert len(again.devices) == 2")
    front.sidebar.get_by_role("button", name="Insert %%pool cell").click()
    expect(page.locator(".Toastify").get_by_text("Open a notebook first")).to_be_visible()
    assert front.complaints == []
    front.close()


def test_by_keyboard_alone_with_forced_colours_and_no_motion(gpus: Notebook, browser: Browser, lab: Lab) -> None:
    front = Front(browser, lab, forced_colors="active", reduced_motion="reduce")
    front.open_sidebar()
    expect(front.sidebar.locator(".kn-device")).to_have_count(2)
    front.sidebar.locator(".kn-fold").first.focus()
    reached = []
    for _ in range(6):
        reached.append(front.page.evaluate("document.activeElement.textContent"))
        front.page.keyboard.press("Tab")
    assert any("Copy invite" in text for text in reached)
    assert any("Insert %%pool cell" in text for text in reached)
    front.sidebar.locator(".kn-fold").first.focus()
    front.page.keyboard.press("Enter")
    expect(front.sidebar.locator(".kn-device")).to_have_count(0)
    front.page.keyboard.press("Enter")
    fill = front.sidebar.locator(".kn-fill-use").first
    assert fill.evaluate("each => getComputedStyle(each).backgroundColor") != "rgba(0, 0, 0, 0)"
    assert fill.evaluate("each => getComputedStyle(each).transitionDuration") == "0s"
    front.close()


def test_the_kernels_are_as_they_were(gpus: Notebook) -> None:
    assert psutil.pid_exists(gpus.pid)
    gpus.ok("assert len(pool.devices) == 2 and not pool.snapshot().leases")
