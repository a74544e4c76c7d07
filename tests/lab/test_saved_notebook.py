"""A notebook that nobody watched: run by nbclient, saved with its widgets, and read as HTML where none can live."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from playwright.sync_api import Browser, expect

from notebook import ANSI

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
CELLS = (
    "%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)\npool",
    "%%pool\ndef broken():\n    return 1 / (rank - rank)\nbroken()",
    "%%pool\nprint(f'rank {rank} went on')",
    "pool.map(lambda config: config, range(4), name='four').wait()",
    "pool.close()\nkn.sweeps.forget('four')",
)
FAILS = 1


def client(folder: Path, **options: object) -> NotebookClient:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to its end, with an error on its way."""
    folder = tmp_path_factory.mktemp("saved")
    path = folder / "saved.ipynb"
    nbformat.write(client(folder, allow_errors=True).execute(), path)
    return path


def test_an_error_is_kept_as_its_traceback_and_the_rest_goes_on(saved: Path) -> None:
    cells = nbformat.read(saved, 4).cells
    [error] = [output for output in cells[FAILS].outputs if output.output_type == "error"]
    assert error.ename == "ZeroDivisionError"
    assert "return 1 / (rank - rank)" in ANSI.sub("", "\n".join(error.traceback))
    assert "[1] rank 1 went on" in "".join(output.get("text", "") for output in cells[FAILS + 1].outputs)


def test_the_first_error_ends_a_strict_run_and_says_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError) as raised:
        client(tmp_path).execute()
    text = ANSI.sub("", str(raised.value))
    assert raised.value.ename == "ZeroDivisionError"
    assert "ranks 0-1" in text
    assert "return 1 / (rank - rank)" in text
    # of our own house nothing
    assert "kalavai_nb/" not in text, text


def test_as_html_it_shows_the_last_state_without_widgets(saved: Path, browser: Browser) -> None:
    states = nbformat.read(saved, 4).metadata.widgets[WIDGET_STATE]["state"]
    assert any(state["model_module"] == "anywidget" for state in states.values()), json.dumps(states)[:500]
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--log-level", "ERROR", str(saved)]
    subprocess.run(command, check=True)
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(saved.with_suffix(".html").as_uri(), wait_until="domcontentloaded")
    table = page.locator("table", has_text="cpu:0")
    expect(table).to_be_visible()
    expect(page.get_by_text("sweep four of you ended")).to_be_visible()
    expect(page.get_by_text("[1] rank 1 went on")).to_be_visible()
    expect(page.locator("progress[value='4'][max='4']")).to_be_visible()
    shown = page.locator("body").inner_text()
    for garbage in ("PanelWidget", "Loading widget", "Error displaying widget", "(value="):
        assert garbage not in shown
    context.close()
