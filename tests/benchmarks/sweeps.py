"""Sweeps: what trials cost and what is lost when something goes wrong, against dask, ray, joblib, ipyparallel, Optuna.

Who is run how, and what is done to them, is in peers.py. A peer that is not installed is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from notebook import Notebook, listens_on
from tests.benchmarks.table import Row, figure, spread

TESTS = Path(__file__).parent.parent
Figures = dict[str, float]
# of several runs, the worst where it is a count of what is to be kept or spared
SUMMARIES: dict[str, Callable[[Iterable[float]], float]] = {
    "kept": min,
    "distinct": min,
    "executions": max,
    "lost": max,
    "further": max,
}
UNITS = {"ms": "ms", "seconds": "s", "ratio": "×"}


@dataclass(frozen=True)
class Case:
    """One row: a case of peers.py, who is put through it (ours first), how to read the figures, and what ours must be.

    ``met`` is asked with our figures and those of the peers that gave any; ``key`` is the figure whose ratio counts.
    """

    what: str
    name: str
    systems: tuple[str, ...]
    form: str
    must: str = ""
    met: Callable[[Figures, dict[str, Figures]], bool] = lambda ours, peers: True
    limit_seconds: float = 90.0
    key: str = ""


CASES = (
    Case(
        "1,000 no-op trials",
        "no_ops",
        ("kalavai_nb", "dask", "ray", "joblib", "ipyparallel"),
        "{ms:.3g} ms each",
        "≤ dask's time",
        lambda ours, peers: ours["ms"] <= peers.get("dask", ours)["ms"],
        key="ms",
    ),
    Case(
        "200 no-op trials, a fresh process each",
        "no_ops_isolated",
        ("kalavai_nb/isolated",),
        "{ms:.3g} ms each",
        "≤ 40 ms each",
        lambda ours, peers: ours["ms"] <= 40,
    ),
    Case("200 no-op trials, proposed by TPE", "search", ("kalavai_nb", "Optuna on dask"), "{ms:.3g} ms each", key="ms"),
    Case(
        "50 MB in the function, 100 trials",
        "closure",
        ("kalavai_nb", "dask", "ray"),
        "{seconds:.2g} s, {megabytes:.0f} MB sent",
        "≤ 110 MB, ≤ ray's time",
        lambda ours, peers: ours["megabytes"] <= 110 and ours["seconds"] <= peers.get("ray", ours)["seconds"],
        key="seconds",
    ),
    Case(
        "SIGKILL of a worker after 20 of 40",
        "killed",
        ("kalavai_nb", "dask", "ray"),
        "{kept:.0f} kept, {executions:.0f} run, {ratio:.2f} × undisturbed",
        "40 kept, ≤ 41 run, ≤ 1.1 ×",
        lambda ours, peers: ours["kept"] == 40 and ours["executions"] <= 41 and ours["ratio"] <= 1.1,
        limit_seconds=150.0,
        key="ratio",
    ),
    Case(
        "trial 17 raises",
        "raises",
        ("kalavai_nb", "dask", "ray", "joblib"),
        "{kept:.0f} kept, {executions:.0f} run",
        "39 kept, 40 run",
        lambda ours, peers: ours["kept"] == 39 and ours["executions"] == 40,
    ),
    Case(
        "trial 17 calls os._exit",
        "exits",
        ("kalavai_nb", "dask", "ray", "joblib"),
        "{kept:.0f} kept, {executions:.0f} run, {lost:.0f} workers lost",
        "39 kept, ≤ 42 run, 0 workers lost",
        lambda ours, peers: ours["kept"] == 39 and ours["executions"] <= 42 and ours["lost"] == 0,
    ),
    Case(
        "■ after 10 of 40",
        "stopped",
        ("kalavai_nb", "dask", "ray", "joblib"),
        "{further:.0f} more begin",
        "0 more begin",
        lambda ours, peers: ours["further"] == 0,
    ),
    Case(
        "same config ten times, random function",
        "same_config",
        ("kalavai_nb", "dask/pure", "ray", "joblib"),
        "{distinct:.0f} distinct",
        "10 distinct",
        lambda ours, peers: ours["distinct"] == 10,
    ),
    Case(
        "ASHA on digits, epochs until random search's best score",
        "asha",
        ("kalavai_nb",),
        "{of_own:.2f} × random search's, {of_budget:.2f} × its budget",
        "≤ 0.5 ×",
        lambda ours, peers: ours["of_own"] <= 0.5,
        limit_seconds=300.0,
    ),
)


def measure() -> Iterator[Row]:
    """All cases, each with all its systems right after one another."""
    for case in CASES:
        yield _compare(case)
    yield from _ten_thousand()


def _compare(case: Case) -> Row:
    # "dask/pure" is dask
    runs = {system.partition("/")[0]: _run(system, case) for system in case.systems}
    figures = {name: _summary(run) for name, run in runs.items() if isinstance(run, list)}
    words = {name: case.form.format(**figures[name]) if name in figures else str(run) for name, run in runs.items()}
    said, ours = words.pop("kalavai_nb"), figures.pop("kalavai_nb", None)
    met, row = ours is not None and case.met(ours, figures), Row(case.what, said, words, case.must)
    if ours is None or not case.key:
        return replace(row, met=met)
    ratio = ours[case.key] / min(peer[case.key] for peer in figures.values()) if figures else None
    note = spread([run[case.key] for run in runs["kalavai_nb"] if isinstance(run, dict)], UNITS[case.key])
    return replace(row, met=met, ratio=ratio, note=note)


def _summary(run: list[Figures]) -> Figures:
    return {key: SUMMARIES.get(key, statistics.median)([line[key] for line in run]) for key in run[0]}


def _run(system: str, case: Case) -> list[Figures] | str:
    """The figures of one system in one case, each time it was put through it, or why there are none."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.peers", system, case.name],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "CUDA_VISIBLE_DEVICES": ""},
                stdout=stdout,
                stderr=stderr,
            )
            try:
                process.wait(case.limit_seconds)
            except subprocess.TimeoutExpired:
                return f"not done in {case.limit_seconds:.0f} s"
            finally:
                _end(process)
        lines = [json.loads(line) for line in out.read_text().splitlines() if re.match(r'[{"]', line)]
        if lines == ["not installed"]:
            return "not installed"
        if process.returncode or not lines:
            return f"failed: {' '.join(err.read_text().split())[-100:]}"
    return lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run that did not end by itself, with all that it started."""
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _ten_thousand() -> Iterator[Row]:
    """Memory, display and journal over 10,000 no-op trials in a notebook."""
    with tempfile.TemporaryDirectory() as folder, Notebook(cwd=folder) as notebook:
        notebook.ok("import kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)\ndef nothing(x): pass")
        notebook.ok("pool.map(nothing, range(1000)).wait()\nNone")
        address = notebook.ok("pool.engine.address").displays[0]["text/plain"].strip("'")
        (head,) = [process for process in notebook.descendants() if listens_on(process, address)]
        watched = (psutil.Process(notebook.pid), head)
        before = [_mebibytes(process) for process in watched]
        cell = notebook.ok("sweep = pool.map(nothing, range(10_000)).wait()\nsweep", timeout=300)
        kernel, head_growth = (_mebibytes(process) - earlier for process, earlier in zip(watched, before, strict=True))
        a_trial = sum(file.stat().st_size for file in Path(folder, ".kalavai").rglob("*") if file.is_file()) / 11_000
        pictures = [m["content"]["data"]["text/plain"] for _, m in cell.messages if "data" in m["content"]]
    height = max(picture.count("\n") + 1 for picture in pictures)
    what = "10,000 no-op trials:"
    yield figure(f"{what} lines of the display", height, "lines", 25, note=f"{cell.message_bytes / 1e3:.0f} kB in all")
    yield figure(f"{what} growth of the notebook", kernel, "MiB", 30)
    yield figure(f"{what} growth of the head", head_growth, "MiB", 10)
    yield figure(f"{what} journal, for each", a_trial, "B", 1000)


def _mebibytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20
