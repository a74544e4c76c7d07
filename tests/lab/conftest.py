"""A real browser for the tests in this folder; skipped where there is none, but never in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from lab import Front, Lab, chromium, executable


# not for the session: Playwright keeps an event loop in this thread, which other tests could not have beside it
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not executable():
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium, and in CI there has to be one: make chromium")
        pytest.skip("NO CHROMIUM HERE: nothing that people see is tested; make chromium installs one")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture(scope="module")
def lab(server: Lab) -> Lab:
    """JupyterLab as it was when it was new."""
    server.forget()
    return server


@pytest.fixture
def front(browser: Browser, lab: Lab) -> Iterator[Front]:
    """JupyterLab with the sidebar open, which must not complain of us in the end."""
    front = Front(browser, lab)
    front.open_sidebar()
    yield front
    complaints = front.complaints
    front.close()
    assert complaints == []
