"""Cells, sweeps, models and kills at random on one embedded pool, and then: does anything grow? ``make soak``.

    python tests/soak/mixed.py [--minutes 30] [--seed 1]

What each action leads to is checked, with a deadline. Every few minutes all is brought to rest and measured; the first
third of these moments is compared with the last. It ends with a table (``build/soak.json`` has all figures), and with
status 1 where an outcome was wrong or something grew beyond its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from soak import cells, models, neighbours, trials, verdict
from soak.bench import Bench, until
from soak.figures import Sample, Watched

from notebook import Notebook
from tiny_lm import tiny_lm

Action = Callable[[Bench], None]
# how often each, compared with the others
ACTIONS: dict[str, tuple[Action, int]] = {
    "cell, small": (cells.small, 8),
    "cell, large output": (cells.large_output, 3),
    "cell, 50 MB": (cells.large_array, 4),
    "cell, error": (cells.error, 5),
    "cell, collective": (cells.together, 2),
    "cell, ■": (cells.stopped, 4),
    "cell, rank killed": (cells.rank_killed, 3),
    "cell, rank frozen": (cells.rank_frozen, 2),
    "cell, worker killed": (cells.worker_killed, 2),
    "cell, --async": (cells.in_background, 4),
    "sweep, short trials": (trials.short_ones, 5),
    "sweep, trials that fail": (trials.that_fail, 3),
    "sweep, trial killed": (trials.killed, 3),
    "sweep, trial frozen": (trials.frozen, 2),
    "sweep, worker killed": (trials.worker_killed, 2),
    "sweep resumed": (trials.resumed, 4),
    "sweep, TPE and ASHA": (trials.searched, 3),
    "sweep, large results": (trials.laden, 3),
    "sweep in background": (trials.in_background, 4),
    "model, load": (models.load, 4),
    "model, close": (models.close, 1),
    "model, generate": (models.generate, 3),
    "model, stream": (models.stream, 3),
    "model, batch": (models.batch, 3),
    "model, serve": (models.serve, 3),
    "model, ■": (models.stopped, 2),
    "model, stage killed": (models.stage_killed, 3),
    "model, stage frozen": (models.stage_frozen, 2),
    "model, worker killed": (models.worker_killed, 2),
    "visitor": (neighbours.visitor, 3),
    "panel": (neighbours.panel, 3),
    "look": (neighbours.look, 3),
    "worker frozen": (neighbours.frozen_worker, 2),
    "head frozen": (neighbours.frozen_head, 1),
}
SAMPLE_SECONDS = 10.0
QUIET_MOMENTS = 12
# after all was closed, processes end and what they held is given back
SETTLE_SECONDS = 30.0
# after so many wrong outcomes more of them say nothing
MOST_TROUBLES = 20
MOST_CHARACTERS = 1500


class Soak:
    """One run of it."""

    def __init__(self, bench: Bench, watched: Watched, seconds: float) -> None:
        self.bench, self.watched, self.seconds = bench, watched, seconds
        self.samples: list[Sample] = []
        self.counts: dict[float, Counter[str]] = {}
        self.troubles: list[str] = []
        self._over = threading.Event()

    def run(self) -> None:
        self.bench.open()
        self.watched.head = self.bench.head().pid
        sampler = threading.Thread(target=self._sample_on_and_on, daemon=True)
        sampler.start()
        try:
            self._act_on_and_on()
        finally:
            self._over.set()
            sampler.join()

    def act(self, name: str) -> None:
        """One action, and what was begun earlier and is due."""
        self._try(name, ACTIONS[name][0])
        for later in list(self.bench.later):
            later.after -= 1
            if later.after <= 0:
                self.bench.later.remove(later)
                self._try(later.name, lambda _, later=later: later.check(later.is_disturbed))

    def rest(self) -> None:
        """Bring all to rest, and measure."""
        for later in self.bench.later:
            self._try(later.name, lambda _, later=later: later.check(later.is_disturbed))
        self.bench.later.clear()
        self._try("model, close", models.close)
        self.bench.restart()
        self.bench.ok("%reset -f out\ngc.collect()")
        least = min(int(s.figures["processes"]) for s in self.samples if s.is_quiet) if self.counts else 0
        try:
            until(lambda: self._at_rest(least), "processes as before", SETTLE_SECONDS)
        except AssertionError as error:
            print(f"  not at rest: {error}", flush=True)
        time.sleep(2)
        sample = self.watched.sample(is_quiet=True)
        self.counts[sample.seconds] = Counter(self.bench.counts)
        self.samples.append(sample)
        figures = sample.figures
        shown = ("processes", "descriptors", "threads", "memory MB", "memory MB of kernel", "memory MB of head")
        print(f"{self.passed:5.0f} s, at rest: " + ", ".join(f"{figures[n]:g} {n}" for n in shown), flush=True)

    @property
    def passed(self) -> float:
        return time.monotonic() - self.watched.began

    def _act_on_and_on(self) -> None:
        # what is loaded once is there before it is counted
        first = list(ACTIONS) * 2
        self.bench.luck.shuffle(first)
        while first and self.passed < self.seconds / 3:
            self.act(first.pop())
        quiet_at = self.passed
        names, weights = list(ACTIONS), [weight for _, weight in ACTIONS.values()]
        while self.passed < self.seconds and len(self.troubles) < MOST_TROUBLES:
            if self.passed >= quiet_at:
                self.rest()
                quiet_at = self.passed + self.seconds / QUIET_MOMENTS
            self.act(self.bench.luck.choices(names, weights)[0])
        self.rest()

    def _at_rest(self, least: int) -> bool:
        count = len(self.watched.processes())
        time.sleep(1)
        return count == len(self.watched.processes()) and (not least or count <= least)

    def _try(self, name: str, action: Action) -> None:
        began = time.monotonic()
        self.bench.counts[name] += 1
        try:
            action(self.bench)
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)]
            said = f"{type(error).__name__}: {str(error)[-MOST_CHARACTERS:]} (lines {lines[1:]})"
            self.troubles.append(f"{self.passed:.0f} s, {name}: {said}")
            print(f"WRONG: {self.troubles[-1]}", flush=True)
            self._recover()
        print(f"{self.passed:5.0f} s: {name} ({time.monotonic() - began:.1f} s)", flush=True)

    def _recover(self) -> None:
        """Whatever went wrong: say how things are, and let the next action find a notebook that answers."""
        self.bench.notebook.interrupt()
        self.bench.run("pass")
        print(self.bench.run("print(globals().get('sweep'), globals().get('lm'), pool, sep='\\n')").text, flush=True)
        self.bench.run("for each in list(pool.models): each.close()\nfor each in kn.sweeps.live(): each.stop()")
        self.bench.model = None
        self.bench.run("%pool restart")

    def _sample_on_and_on(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.samples.append(self.watched.sample())


def run(directory: Path, minutes: float, seed: int) -> tuple[Soak, list[verdict.Row]]:
    mark = f"KALAVAI_SOAK={directory.name}"
    environment = {
        "KALAVAI_SOAK": directory.name,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TMPDIR": str(directory / "scratch"),
        "JUPYTER_RUNTIME_DIR": str(directory / "runtime"),
        "KALAVAI_HOME": str(directory / "kalavai"),
        "IPYTHONDIR": str(directory / "ipython"),
    }
    for name in ("scratch", "runtime", "kalavai", "ipython", "notebook", "notes"):
        (directory / name).mkdir()
    paths = [str(tiny_lm(directory / "tiny", eos_token_id=None))]
    if real := models.real_model():
        paths.append(real)
    with Notebook(cwd=str(directory / "notebook"), env=environment) as notebook:
        bench = Bench(directory / "notes", notebook, random.Random(seed), environment, paths)
        watched = Watched(notebook.pid, mark, directory, began=time.monotonic())
        soak = Soak(bench, watched, minutes * 60)
        try:
            soak.run()
        except (TimeoutError, AssertionError) as error:
            # a notebook that answers no more: what was seen until then is told all the same
            said = f"{type(error).__name__}: {str(error)[-MOST_CHARACTERS:]}"
            soak.troubles.append(f"{soak.passed:.0f} s, given up: {said}")
    try:
        until(lambda: not watched.processes(), "all processes gone with the notebook", SETTLE_SECONDS)
    except AssertionError as error:
        soak.troubles.append(f"{error}; left: {[p.pid for p in watched.processes()]}")
    return soak, verdict.rows(soak.samples, soak.counts)


def report(soak: Soak, rows: list[verdict.Row], path: Path, minutes: float, seed: int) -> int:
    """Print what was seen and write it down; 1 where something is wrong."""
    counts = soak.bench.counts
    print("\n| action | times |\n|---|---|")
    for name, count in sorted(counts.items()):
        print(f"| {name} | {count} |")
    print(f"\n{verdict.table(rows)}")
    if quiet := [sample for sample in soak.samples if sample.is_quiet]:
        print(
            f"\n{quiet[-1].figures['MB in journal'] * 1e3 / max(1, counts['trials']):.1f} kB in the journal for a trial"
        )
    for trouble in soak.troubles:
        print(f"WRONG: {trouble}")
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"minutes": minutes, "seed": seed, "counts": dict(counts), "troubles": soak.troubles}
    tables = {"rows": [row.to_dict() for row in rows], "samples": [asdict(sample) for sample in soak.samples]}
    path.write_text(json.dumps({**said, **tables}, indent=1) + "\n")
    return 1 if soak.troubles or any(row.met is False for row in rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"))
    options = parser.parse_args()
    # a socket's path may have 107 bytes, so this is not where a long TMPDIR would put it
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp" if os.path.isdir("/tmp") else None) as directory:
        soak, rows = run(Path(directory), options.minutes, options.seed)
        return report(soak, rows, options.json, options.minutes, options.seed)


if __name__ == "__main__":
    sys.exit(main())
