"""The quickstart as a person runs it in a front end: opened, Run All, looked at, saved."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat.reader import NotJSONError
from playwright.sync_api import Browser, expect

from lab import Front, Lab

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
# so high that every cell is there: front ends draw those that are seen
VIEWPORT = {"width": 1280, "height": 6000}
RUN_SECONDS = 150
SAVE_SECONDS = 30
# words of the same moment come in one message
APART_MILLISECONDS = 50
# which cell's printed output grew, and when; and what the progress of sweeps was
WATCH = """() => {
  window.grown = [];
  window.progress = new Set();
  const look = change => {
    const at = change.target.nodeType === Node.ELEMENT_NODE ? change.target : change.target.parentElement;
    const cell = at?.closest('.jp-OutputArea') && at.closest('.jp-CodeCell');
    if (!cell) return;
    cell.querySelectorAll('.jp-RenderedHTML progress').forEach(each => progress.add(each.value));
    const printed = [...cell.querySelectorAll('[data-mime-type="application/vnd.jupyter.stdout"]')];
    const length = printed.reduce((sum, each) => sum + each.innerText.length, 0);
    const last = grown.findLast(each => each.cell === cell.dataset.windowedListIndex);
    if (length > (last?.length ?? 0)) {
      grown.push({cell: cell.dataset.windowedListIndex, length, at: performance.now()});
    }
  };
  new MutationObserver(changes => changes.forEach(look)).observe(
    document.querySelector('.jp-Notebook'), {subtree: true, childList: true, characterData: true});
}"""
ALL_RAN = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
  .every(each => /\\[\\d+\\]/.test(each.innerText))"""


@dataclass(frozen=True)
class FrontEnd:
    """Where a notebook is opened, and what is there once it is."""

    name: str
    path: str
    ready: str


JUPYTERLAB = FrontEnd("JupyterLab", "lab/tree/{}", "#jp-main-dock-panel")
NOTEBOOK_7 = FrontEnd("Notebook", "notebooks/{}", ".jp-NotebookPanel")


def run_quickstart(browser: Browser, lab: Lab, end: FrontEnd) -> Path:
    """Run it there and check all that is to be seen; the notebook as it was saved."""
    path = lab.work / NOTEBOOK.name
    shutil.copy(NOTEBOOK, path)
    front = Front(browser, lab, path=end.path.format(path.name), ready=end.ready, viewport=VIEWPORT)
    page = front.page
    cells = nbformat.read(path, 4).cells
    expect(page.locator(".jp-Cell")).to_have_count(len(cells))
    front.wait_for_kernel()
    page.evaluate(WATCH)
    _choose(front, "Run", "Run All Cells")
    panel = page.locator(".kn-panel").first
    expect(panel.locator(".kn-device")).to_have_count(4, timeout=60_000)
    # while a cell waits for the sweep, the panel above it goes on
    expect(panel.locator(".kn-item:has(.kn-progress)")).to_be_visible(timeout=1000 * RUN_SECONDS)
    expect(panel.get_by_role("status").first).to_have_text("live")
    page.wait_for_function(ALL_RAN, timeout=1000 * RUN_SECONDS)
    _check_growth(page.evaluate("grown"), cells)
    assert any(value > 0 for value in page.evaluate("[...progress]")), "the progress of the sweep was seen"
    expect(panel.get_by_role("status").first).to_have_text("live")
    # and the still picture below it is for others
    expect(page.locator(".jp-Cell").nth(1).locator("table:has-text('device')")).to_be_hidden()
    width = page.locator(".jp-OutputArea-output img").last.evaluate("each => each.naturalWidth")
    assert width > 300, "the plot is there as a picture"
    _choose(front, "View", "GPU Pools")
    expect(front.sidebar).to_contain_text(path.stem)
    expect(front.sidebar.locator(".kn-device")).to_have_count(4)
    page.keyboard.press("Control+s")
    check_saved(path)
    assert front.complaints == [], front.complaints
    lab.end_kernels(page)
    front.close()
    return path


def _choose(front: Front, menu: str, item: str) -> None:
    front.page.get_by_role("menuitem", name=menu, exact=True).click()
    front.page.get_by_role("menuitem", name=item, exact=True).click()


def _check_growth(grown: list[dict[str, Any]], cells: list[Any]) -> None:
    """What is printed comes into the cell that runs, as it is printed."""
    places = [int(each["cell"]) for each in grown]
    assert places == sorted(places), "each cell's lines came before those of the next"
    assert {cells[place].cell_type for place in places} == {"code"}
    moments = [[each["at"] for each in grown if int(each["cell"]) == place] for place in set(places)]
    steps = [sum(b - a > APART_MILLISECONDS for a, b in itertools.pairwise(times)) for times in moments]
    assert max(steps) >= 2, "lines of a long cell come one after the other"


def check_saved(path: Path) -> None:
    """The file has the outputs, for readers that have neither a kernel nor widgets."""
    deadline = time.monotonic() + SAVE_SECONDS
    code: list[Any] = []
    while not code or not all(cell.execution_count for cell in code):
        # it may be empty for a moment, while it is written
        with contextlib.suppress(NotJSONError):
            code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert time.monotonic() < deadline, "it was not saved"
        time.sleep(0.1)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    said = [_words(cell.outputs) for cell in code]
    assert any("[3] rank 3 of 4" in words for words in said)
    table = next(words for words in said if re.search(r"^0 +\S+ cpu:0 ", words, re.MULTILINE))
    assert "pool of quickstart.ipynb" in table
    assert any("image/png" in output.get("data", {}) for output in outputs)
    silent = [cell.source for cell, words in zip(code, said, strict=True) if cell.outputs and not words.strip()]
    assert silent == [], "each says in plain text what it shows"


def _words(outputs: list[Any]) -> str:
    """The plain text of a cell's outputs."""
    return "".join(each.get("text") or each.get("data", {}).get("text/plain", "") + "\n" for each in outputs)
