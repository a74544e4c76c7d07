"""The quickstart in JupyterLab and in Notebook 7; `make test-installs` does the same with the oldest of both."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from lab import Lab
from quickstart import JUPYTERLAB, NOTEBOOK_7, FrontEnd, run_quickstart


@pytest.mark.parametrize(
    "end", [JUPYTERLAB, pytest.param(NOTEBOOK_7, marks=pytest.mark.slow)], ids=lambda end: end.name
)
def test_the_quickstart_runs_there_from_top_to_bottom(browser: Browser, lab: Lab, end: FrontEnd) -> None:
    run_quickstart(browser, lab, end)
