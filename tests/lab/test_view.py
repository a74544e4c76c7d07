"""The view by itself and in JupyterLab: rules of accessibility, two hundred devices, and no growth over ten minutes."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from lab import SIDEBAR, Front, Lab
from synthetic import Published, busy, snapshot

SOURCES = Path(__file__).parents[2] / "labextension"
THEMES = Path(sys.prefix) / "share/jupyter/lab/themes/@jupyterlab"
LOOKS = {"light": "theme-light-extension", "dark": "theme-dark-extension"}
STATES = ("empty", "idle", "busy", "crowd", "failing", "odd", "down", "many")
SCRIPTING_MILLISECONDS = 16.0
# the first updates are not compiled yet; on a busy machine the best of some rounds counts
WARM, ROUNDS = 3, 8
UPDATES = 600
# what a browser keeps for itself
GROWTH_BYTES = 1_000_000


def violations(page: Page, context: str | None = None) -> list[str]:
    """What axe says against it, with the first place of each."""
    found = Axe().run(page, context).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary']}" for each in found]


@pytest.fixture(scope="module")
def script() -> str:
    """The gallery of labextension/gallery, built from the sources as they are."""
    esbuild = SOURCES / "node_modules" / "esbuild" / "bin" / "esbuild"
    if not esbuild.exists():
        assert os.environ.get("CI") != "true", "no esbuild: make typescript installs it"
        pytest.skip("NO ESBUILD HERE: the view is not tested by itself; make typescript installs it")
    node = Path(sys.executable).with_name("node")
    how = ["--bundle", "--jsx=automatic", "--jsx-import-source=preact", "--log-level=warning"]
    built = subprocess.run([node, esbuild, "gallery/gallery.ts", *how], cwd=SOURCES, check=True, capture_output=True)
    return built.stdout.decode()


class Gallery:
    """Pages with one state each, at an address that only they know."""

    def __init__(self, browser: Browser, script: str) -> None:
        self.browser, self.script = browser, script

    def open(self, state: str, look: str = "light", **options: Any) -> Page:
        chosen = {"viewport": {"width": 300, "height": 800}, "color_scheme": look, **options}
        page = self.browser.new_page(**chosen)
        page.route("**/*", self._answer)
        page.goto(f"http://gallery.localhost/index.html?state={state}&look={look}")
        page.wait_for_selector(".kn-view")
        return page

    def _answer(self, route: Route) -> None:
        path = route.request.url.partition("?")[0].removeprefix("http://gallery.localhost/")
        if path == "gallery.js":
            route.fulfill(body=self.script, content_type="text/javascript")
        elif path.removesuffix(".css") in LOOKS:
            route.fulfill(path=THEMES / LOOKS[path.removesuffix(".css")] / "index.css")
        else:
            found = [file for file in (SOURCES / "gallery" / path, SOURCES / path) if file.is_file()]
            if found:
                route.fulfill(path=found[0])
            else:
                route.fulfill(status=404)


@pytest.fixture
def gallery(browser: Browser, script: str) -> Gallery:
    return Gallery(browser, script)


@pytest.mark.parametrize("look", LOOKS)
def test_every_state_keeps_the_rules_of_accessibility(gallery: Gallery, look: str) -> None:
    found = []
    for state in STATES:
        page = gallery.open(state, look)
        found += [f"{state}: {each}" for each in violations(page)]
        page.close()
    assert found == []


def test_bars_are_there_with_forced_colours_and_nothing_moves_with_reduced_motion(gallery: Gallery) -> None:
    page = gallery.open("busy", forced_colors="active", reduced_motion="reduce")
    styles = page.locator(".kn-meter .kn-fill").evaluate_all(
        "all => all.map(each => [getComputedStyle(each).backgroundColor, getComputedStyle(each).transitionDuration,"
        " getComputedStyle(each.parentElement).backgroundColor])"
    )
    assert styles
    for fill, duration, track in styles:
        assert fill != track
        assert duration == "0s"
    page.close()


@pytest.mark.slow
def test_two_hundred_devices_cost_little_and_leave_nothing_behind(gallery: Gallery) -> None:
    page = gallery.open("many")
    page.evaluate("unfold()")
    expect(page.locator(".kn-device")).to_have_count(200)
    session = page.context.new_cdp_session(page)
    # of its own processor time: other programs do not count
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def metric(name: str) -> float:
        return next(m["value"] for m in session.send("Performance.getMetrics")["metrics"] if m["name"] == name)

    def a_round(first: int) -> float:
        took = []
        for second in range(first, first + 30):
            before = metric("ScriptDuration")
            # in a task of the page's own: what is run from outside is not counted
            page.evaluate("n => new Promise(done => setTimeout(() => done(step(n))))", second)
            took.append(1000 * (metric("ScriptDuration") - before))
        return statistics.median(took[WARM:])

    medians = [a_round(1)]
    while len(medians) < ROUNDS and min(medians) > SCRIPTING_MILLISECONDS:
        medians.append(a_round(1 + 30 * len(medians)))
    print(f"\n200 devices by themselves, scripting of an update: {min(medians):.1f} ms")
    assert min(medians) <= SCRIPTING_MILLISECONDS
    heap, nodes = [], []
    for first, last in ((100, 300), (300, 300 + UPDATES)):
        page.evaluate(
            "async ([from, to]) => { for (let n = from; n < to; n++) { step(n);"
            " if (n % 50 === 0) await new Promise(requestAnimationFrame) } }",
            [first, last],
        )
        heap.append(page.evaluate("gc(), gc(), performance.memory.usedJSHeapSize"))
        nodes.append(page.evaluate("document.querySelectorAll('*').length"))
    print(f"heap over {UPDATES} updates: {(heap[1] - heap[0]) / 1024:+.0f} KiB, elements {nodes}")
    assert heap[1] - heap[0] < GROWTH_BYTES
    assert nodes[0] == nodes[1]
    page.close()


def test_two_hundred_devices_through_a_real_server(lab: Lab, front: Front) -> None:
    with Published(lab.runtime, lambda second: snapshot(25, 8, second)):
        page, sidebar = front.page, front.sidebar
        expect(sidebar.locator(".kn-totals")).to_contain_text("1 pool · 200 devices")
        assert sidebar.locator(".kn-fold[aria-expanded=false]").count() == 25, "many machines are folded"
        sidebar.locator(".kn-fold").evaluate_all("all => all.forEach(each => each.click())")
        expect(sidebar.locator(".kn-device")).to_have_count(200)
        session = front.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def scripting() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return 1000 * next(float(each["value"]) for each in metrics if each["name"] == "ScriptDuration")

        def an_update() -> float:
            before, sent = scripting(), front.sent
            while front.sent == sent:
                page.wait_for_timeout(100)
            return (scripting() - before) / (front.sent - sent)

        for _ in range(WARM):
            an_update()
        # what shares the processors of this machine makes all of it slower now and then
        medians: list[float] = []
        while len(medians) < ROUNDS and min(medians, default=math.inf) > SCRIPTING_MILLISECONDS:
            medians.append(statistics.median(an_update() for _ in range(5)))
        print(f"\n200 devices in JupyterLab, scripting of an update: {medians} ms")
        assert min(medians) <= SCRIPTING_MILLISECONDS


@pytest.mark.parametrize("look", LOOKS)
def test_the_sidebar_in_jupyterlab_keeps_the_rules_in_its_themes(browser: Browser, lab: Lab, look: str) -> None:
    lab.set("@jupyterlab/apputils-extension", "themes", theme=f"JupyterLab {look.capitalize()}")
    with Published(lab.runtime, busy):
        front = Front(browser, lab)
        front.open_sidebar()
        expect(front.sidebar.locator(".kn-device")).to_have_count(6)
        expect(front.sidebar.locator(".kn-item")).not_to_have_count(0)
        found = violations(front.page, f"#{SIDEBAR}")
        found += _boxes_that_move(front)
        expect(front.page.locator(".kn-status")).to_contain_text("1 pool · 6 GPUs")
        found += violations(front.page, ".kn-status")
    expect(front.sidebar).to_contain_text("No pool yet")
    found += violations(front.page, f"#{SIDEBAR}")
    assert front.complaints == []
    front.close()
    assert found == []


def _boxes_that_move(front: Front) -> list[str]:
    """Parts of the sidebar that are elsewhere, or of another size, when only numbers have changed."""
    parts = front.sidebar.locator(".kn-device, .kn-bar, .kn-meter .kn-number, .kn-fold, button")
    where = (
        "all => all.map(each => { const b = each.getBoundingClientRect();"
        " return [each.className, b.x, b.y, b.width, b.height].join(' ') })"
    )
    before, numbers = parts.evaluate_all(where), front.sidebar.locator(".kn-meter-use").all_inner_texts()
    front.page.wait_for_function(
        "old => [...document.querySelectorAll('.kn-meter-use')].map(each => each.innerText).join() !== old",
        arg=",".join(numbers),
    )
    after = parts.evaluate_all(where)
    return [f"{old} -> {new}" for old, new in zip(before, after, strict=True) if old != new]
