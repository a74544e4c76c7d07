"""The package as such: what importing it costs, what it exports, and that every example runs."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

import kalavai_nb as kn
from kalavai_nb.options import OPTION_NAMES

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.ipynb"))


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "distributed", "dask", "ipywidgets", "pandas", "numpy", "cryptography", "IPython")
    source = f"import sys, kalavai_nb; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", source], text=True).strip() == "[]"


def test_all_names_are_there_and_documented() -> None:
    for name in kn.__all__:
        assert getattr(kn, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Pol'"):
        importlib.import_module("kalavai_nb").Pol  # noqa: B018


def test_the_version_has_one_source() -> None:
    assert metadata.version("kalavai-nb") == kn.__version__


def test_the_readme_names_every_option() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in OPTION_NAMES if not re.search(rf"`(--)?{name.replace('_', '[-_]')}\b", readme)]


@pytest.mark.parametrize("method", ["map", "sweep"])
def test_the_readme_names_every_option_of_a_sweep(method: str) -> None:
    readme = (ROOT / "README.md").read_text()
    names = set(inspect.signature(getattr(kn.Pool, method)).parameters) - {
        "self",
        "fn",
        "configs",
        "space",
        "map_options",
        "unknown",
    }
    assert not [name for name in names if not re.search(rf"\b{name}=", readme)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


Ran = tuple[subprocess.CompletedProcess[str], Path]


@pytest.fixture(scope="module")
def examples(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Ran]]]:
    """Those that are asked for, two at once: each waits as long as it computes."""
    folder = tmp_path_factory.mktemp("examples")

    def run(path: Path) -> Ran:
        command = [sys.executable, str(ROOT / "examples" / "run_notebook.py"), str(path), str(folder / path.name)]
        return subprocess.run(command, capture_output=True, text=True, timeout=170, check=False), folder / path.name

    asked = [path for path in EXAMPLES if any(f"[{path.stem}]" in item.name for item in request.session.items)]
    with ThreadPoolExecutor(2) as two:
        yield {path.stem: two.submit(run, path) for path in asked}


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_examples_run_from_top_to_bottom(name: str, examples: dict[str, Future[Ran]]) -> None:
    done, executed = examples[name].result()
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = [o for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "an example ends in a plot"
    assert "[a picture]" in done.stdout
    assert not [output for output in outputs if output.output_type == "error"]


def test_no_file_of_the_package_grows_a_second_noun_unseen() -> None:
    long = {
        file.name: lines for file in ROOT.glob("kalavai_nb/**/*.py") if (lines := file.read_text().count("\n")) > 330
    }
    assert not long
