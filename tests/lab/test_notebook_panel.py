"""The panel in a real notebook: live while a cell is busy, its buttons too, and the last state in the saved file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.reader import NotJSONError
from playwright.sync_api import Browser, expect

from lab import Front, Lab

STOP_SECONDS = 3.0
CELLS = (
    "import kalavai_nb as kn, time\npool = kn.Pool(devices=2, quiet=True)\npool",
    "def slow(config):\n    import time\n    time.sleep(600)\n\n"
    "started = time.time()\nsweep = pool.map(slow, range(9), name='slow', show=False)\nsweep",
    "sweep.wait()\nprint(f'it took {time.time() - started:.1f} s')",
    "pool.close()\nkn.sweeps.forget('slow')",
)


@pytest.fixture
def notebook(browser: Browser, lab: Lab) -> Iterator[tuple[Front, Path]]:
    """JupyterLab with a notebook in it, which has these cells and a kernel."""
    path = lab.work / "pool.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    front = Front(browser, lab, path="lab/tree/pool.ipynb")
    expect(front.page.get_by_text("| Idle")).to_be_visible(timeout=60_000)
    yield front, path
    assert front.complaints == []
    front.close()


def run_next(front: Front) -> None:
    front.page.keyboard.press("Shift+Enter")


def test_it_lives_while_a_cell_is_busy_stops_a_sweep_and_is_saved(
    notebook: tuple[Front, Path], browser: Browser, lab: Lab
) -> None:
    front, path = notebook
    page = front.page
    page.locator(".jp-CodeCell").first.click()
    run_next(front)
    pool, sweep = page.locator(".kn-panel").first, page.locator(".kn-panel").nth(1)
    expect(pool.locator(".kn-device")).to_have_count(2, timeout=60_000)
    expect(pool.get_by_role("status").first).to_have_text("live")
    # the still picture below is for those who cannot show it live
    expect(page.locator(".jp-OutputArea-output table")).to_be_hidden()
    run_next(front)
    expect(sweep).to_contain_text("slow")
    expect(sweep.locator(".kn-device")).to_have_count(2)
    run_next(front)
    expect(page.get_by_text("| Busy")).to_be_visible()
    expect(pool.locator(".kn-item:has(.kn-progress)")).to_contain_text("2 running")
    page.wait_for_timeout(3000)
    expect(pool.get_by_role("status").first).to_have_text("live")
    started = time.monotonic()
    sweep.get_by_role("button", name="Stop the sweep slow; what is done is kept").click()
    expect(page.get_by_text("it took")).to_be_visible()
    took = time.monotonic() - started
    print(f"\nstop pressed in the notebook to the end of its cell: {took:.2f} s")
    assert took <= STOP_SECONDS
    expect(pool.locator(".kn-item:has(.kn-progress)")).to_contain_text("stopped")
    # the button has the focus now
    page.locator(".jp-CodeCell").nth(3).locator(".jp-InputArea-editor").click()
    run_next(front)
    expect(page.get_by_text("[4]:")).to_be_visible()
    page.keyboard.press("Control+s")
    saved = _saved(path)
    plain = [text for text in saved if "pool of pool.ipynb" in text.get("text/plain", "")]
    assert plain, saved
    assert "<table" in plain[0]["text/html"]
    assert "sweep slow of you stopped" in plain[0]["text/plain"]
    # opened again without its kernel, it shows what it was
    page.close()
    for kernel in front.context.request.get(lab.url("api/kernels")).json():
        front.context.request.delete(
            lab.url(f"api/kernels/{kernel['id']}"), headers={"Authorization": f"token {lab.token}"}
        )
    again = Front(browser, lab, path="lab/tree/pool.ipynb")
    expect(again.page.locator(".jp-OutputArea-output table").first).to_be_visible(timeout=60_000)
    again.close()


def _saved(path: Path) -> list[dict[str, Any]]:
    """The data of all displays in the file, once it was saved with them."""
    deadline = time.monotonic() + 30
    found: list[dict[str, Any]] = []
    while True:
        # it may be empty for a moment, while it is written
        with contextlib.suppress(NotJSONError):
            cells = nbformat.read(path, 4).cells
            found = [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
        if any("stopped" in data.get("text/plain", "") for data in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
