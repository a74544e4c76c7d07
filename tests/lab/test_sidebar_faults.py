"""What the sidebar says when something dies or falls asleep: the truth, within three seconds, and that it is over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil
import pytest
from playwright.sync_api import Browser, expect

from lab import Front, Lab
from notebook import Notebook, listens_on

SHOWN_SECONDS = 3.0
# when the server calls an owner silent, and one whose process is gone ended; when a head that hangs is given up; when
# a browser calls a server down that says nothing
SILENT_SECONDS, ENDED_SECONDS, HANGING_SECONDS, MUTE_SECONDS = 4.0, 2.0, 3.0, 4.0
# an owner says something each second
INTERVAL_SECONDS = 1.0
ENDED_SHOWN_SECONDS = 15.0

OPEN = "%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(devices=1, quiet=True)"


class Clock:
    """Seconds since something was done to the pool, on the screen of one page."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.started = time.monotonic()

    def until(self, condition: str, what: str, limit_seconds: float) -> None:
        """Wait for a condition in the page, at each picture that it draws."""
        self.front.page.wait_for_function(f"() => {{ {FIND} return {condition} }}", timeout=60_000)
        took = time.monotonic() - self.started
        print(f"\n{what}: {took:.2f} s of {limit_seconds:.1f}")
        assert took <= limit_seconds, what


FIND = """
const bar = document.querySelector('#kalavai_nb-sidebar');
const honest = [...bar.querySelectorAll('.kn-honest li')].map(each => each.textContent).join();
const link = bar.querySelector('.kn-link').textContent;
const pools = bar.querySelectorAll('.kn-pool').length;
const old = bar.querySelectorAll('.kn-pool.kn-old').length;
"""


@pytest.fixture
def alive(browser: Browser, lab: Lab) -> Iterator[Front]:
    """The sidebar, in a page that will see its server die: what it says of that itself is not what we did wrong."""
    front = Front(browser, lab)
    front.open_sidebar()
    yield front
    network = ("WebSocket connection to", "Failed to load resource", "Access to fetch")
    ours = [text for text in front.complaints if not text.startswith(network)]
    front.close()
    assert ours == []


@pytest.fixture
def running(lab: Lab) -> Iterator[Notebook]:
    with Notebook(env=lab.env) as notebook:
        notebook.ok(OPEN)
        yield notebook
        # else it is shown as ended for a while
        notebook.ok("pool.close()")


def test_a_head_that_hangs_is_lost_and_found_and_one_that_dies_is_lost(running: Notebook, alive: Front) -> None:
    expect(alive.sidebar.locator(".kn-device")).to_have_count(1)
    address = running.ok("print(pool.engine.address)").stream().strip()
    head = next(process for process in running.descendants() if listens_on(process, address))
    head.suspend()
    clock = Clock(alive)
    clock.until("honest.includes('Head lost') && old", "head hangs", HANGING_SECONDS + SHOWN_SECONDS)
    head.resume()
    Clock(alive).until("!honest && !old", "head goes on", INTERVAL_SECONDS + SHOWN_SECONDS)
    head.kill()
    Clock(alive).until("honest.includes('Head lost') && old", "head dies", INTERVAL_SECONDS + SHOWN_SECONDS)
    expect(alive.sidebar.locator(".kn-honest")).to_contain_text("kn.Pool()")
    running.ok("pool.close()\npool = kn.Pool(devices=1, quiet=True)")
    Clock(alive).until("pools === 1 && !honest && !old", "a new pool", INTERVAL_SECONDS + SHOWN_SECONDS)


def test_all_that_sleeps_is_told_and_wakes_up(running: Notebook, alive: Front, lab: Lab) -> None:
    """A kernel alone, then all there is but the browser: a laptop, seen from another one."""
    expect(alive.sidebar.locator(".kn-device")).to_have_count(1)
    family = [psutil.Process(running.pid), *running.descendants()]
    with asleep(family):
        clock = Clock(alive)
        clock.until("honest.includes('No news for') && old", "kernel sleeps", SILENT_SECONDS + SHOWN_SECONDS)
        clock.until("honest.includes('No news for 6 s')", "and it counts", SILENT_SECONDS + SHOWN_SECONDS)
        with asleep([psutil.Process(lab.process.pid)]):
            Clock(alive).until("link === 'server down'", "server sleeps", MUTE_SECONDS + SHOWN_SECONDS)
        Clock(alive).until("link === 'live'", "server wakes up", 2 * SHOWN_SECONDS)
    Clock(alive).until("!honest && !old", "kernel wakes up", INTERVAL_SECONDS + SHOWN_SECONDS)
    running.ok("assert len(pool.devices) == 1")


@contextlib.contextmanager
def asleep(processes: list[psutil.Process]) -> Iterator[None]:
    for each in processes:
        each.suspend()
    yield
    for each in processes:
        each.resume()


def test_a_server_that_dies_is_down_at_once_and_a_kernel_that_dies_has_ended(alive: Front, lab: Lab) -> None:
    with Notebook(env=lab.env) as notebook:
        notebook.ok(OPEN)
        expect(alive.sidebar.locator(".kn-device")).to_have_count(1)
        lab.kill()
        Clock(alive).until("link === 'server down' && pools === 1", "server dies", SHOWN_SECONDS)
        lab.start()
        Clock(alive).until("link === 'live' && pools === 1 && !honest", "server is back", 2 * SHOWN_SECONDS)
        notebook.kill()
        psutil.Process(notebook.pid).wait(30)
        Clock(alive).until("honest.includes('has ended') && old", "kernel dies", ENDED_SECONDS + SHOWN_SECONDS)


@pytest.mark.slow
def test_a_kernel_that_has_ended_is_shown_for_a_while(alive: Front, lab: Lab) -> None:
    with Notebook(env=lab.env) as notebook:
        notebook.ok(OPEN)
        expect(alive.sidebar.locator(".kn-device")).to_have_count(1)
        notebook.kill()
        psutil.Process(notebook.pid).wait(30)
        clock = Clock(alive)
        clock.until("honest.includes('has ended') && old", "kernel dies", ENDED_SECONDS + SHOWN_SECONDS)
        limit = ENDED_SECONDS + ENDED_SHOWN_SECONDS + SHOWN_SECONDS
        clock.until("pools === 0", "and is taken away", limit)
        expect(alive.sidebar).to_contain_text("No pool yet")
        assert list((lab.runtime / "kalavai_nb").iterdir()) == []
