"""Where a soak works: a notebook with an embedded pool, luck that can be repeated, and what was counted."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from notebook import Cell, Notebook, listens_on

DEVICES = 4
# nothing that is done here takes half a minute on a machine of its own
PATIENCE_SECONDS = 240.0
# after this, people press ■ again: Python loses an interrupt that comes while it finalises something
PRESS_AGAIN_SECONDS = 40.0
LOOK_SECONDS = 0.05

SETUP = """
%load_ext kalavai_nb
import gc, os, time
import numpy as np
import kalavai_nb as kn
pool = kn.Pool(devices={devices}, idle_seconds=3, quiet=True)

def noted(config):
    '''Says in a file which process it is; then it takes its time.'''
    import os, time
    x, seconds, path = config
    with open(path, "a") as file:
        file.write(f"{{x}} {{os.getpid()}}\\n")
    time.sleep(seconds)
    return x * 10

def troubled(x):
    '''Every second one fails, each in a way of its own.'''
    import os, time
    if x % 6 == 1:
        raise ValueError(f"no {{x}}")
    if x % 6 == 3:
        os._exit(3)
    if x % 6 == 5:
        time.sleep(600)
    return x * 10

def learned(config, trial):
    for step in range(1, 10):
        loss = (config["x"] - 2) ** 2 + 1 / step
        trial.report(step, loss=loss)
        time.sleep(0.02)
    return loss

def laden(x, trial):
    '''Leaves a large value, a checkpoint and a file.'''
    import numpy as np
    start = trial.load(0)
    trial.save({{"x": x, "content": np.full(200_000, x)}})
    (trial.dir / "note.txt").write_text(f"{{x}} {{start}}")
    return np.full(200_000, float(x))
"""


@dataclass
class Model:
    """The model that is loaded: its prompts with what it says to each, and the server it has."""

    said: dict[str, str]
    url: str = ""
    key: str = ""
    name: str = ""


@dataclass
class Later:
    """Something that goes on behind the next actions, and is looked at after so many of them."""

    name: str
    after: int
    check: Callable[[bool], None]
    is_cell: bool = False
    is_disturbed: bool = False


@dataclass
class Bench:
    """One notebook with its pool. ``ok`` and ``run`` are cells; what is wrong is raised."""

    directory: Path
    notebook: Notebook
    luck: random.Random
    environment: dict[str, str]
    # where models lie: a tiny random one, and a real one where its package is installed
    models: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    model: Model | None = None
    later: list[Later] = field(default_factory=list)
    # what models said to each prompt when they were loaded first, by path
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    # how many trials each sweep with a name has by now
    grown: Counter[str] = field(default_factory=Counter)
    _number: int = 0

    def open(self) -> None:
        self.ok(SETUP.format(devices=DEVICES))

    # cells

    def run(self, source: str) -> Cell:
        return self.notebook.run(source, PATIENCE_SECONDS)

    def ok(self, source: str) -> Cell:
        return self.notebook.ok(source, PATIENCE_SECONDS)

    def value(self, expression: str) -> Any:
        return self.notebook.value(expression, PATIENCE_SECONDS)

    def begin(self, source: str, text: str = "begun") -> str:
        """Begin a cell and return once it has said this."""
        request = self.notebook.begin(source)
        self.notebook.wait_for_text(request, text, PATIENCE_SECONDS)
        return request

    def finish(self, request: str) -> Cell:
        return self.notebook.finish(request, PATIENCE_SECONDS)

    def press(self, request: str, *, most_seconds: float = 2.0) -> Cell:
        """■ after a random moment; the cell has to end of it."""
        time.sleep(self.luck.uniform(0, most_seconds))
        self.notebook.interrupt()
        try:
            cell = self.notebook.finish(request, PRESS_AGAIN_SECONDS)
        except TimeoutError:
            self.counts["■ pressed twice"] += 1
            self.notebook.interrupt()
            cell = self.finish(request)
        assert cell.error.startswith("KeyboardInterrupt"), f"■ gave {cell.error or 'no error'}: {cell.text[-2000:]}"
        return cell

    # what is free

    def gpus(self, most: int = DEVICES) -> int:
        """So many ranks as there is room for beside a model of two devices, where ranks may be."""
        if self.model:
            # a rank whose device the model has taken since would wait for the model's end
            self.restart()
        return self.luck.randint(1, min(most, DEVICES - 2 if self.model else DEVICES))

    def restart(self) -> None:
        """End all ranks, when cells in the background have ended by themselves."""
        for later in [each for each in self.later if each.is_cell]:
            self.later.remove(later)
            later.check(later.is_disturbed)
        self.ok("%pool restart")

    def number(self) -> int:
        """One that was not there before, for names and values."""
        self._number += 1
        return self._number

    # processes

    def note(self) -> Path:
        """A file for processes to write their ids to."""
        return self.directory / f"pids-{self.number()}"

    def lines(self, note: Path, least: int = 1) -> list[tuple[int, int]]:
        """What they wrote, (number, process id) each, once there are so many."""
        until(lambda: note.exists() and note.read_text().count("\n") >= least, f"{least} lines in {note.name}")
        return [(int(number), int(pid)) for number, pid in map(str.split, note.read_text().splitlines())]

    def ranks(self, request: str, note: Path, gpus: int) -> list[int]:
        """The process ids of the ranks of a cell that is to go on for long, once all have begun."""
        try:
            return [pid for _, pid in self.lines(note, gpus)]
        except AssertionError as error:
            # it may have ended, and then it says why
            self.notebook.interrupt()
            cell = self.finish(request)
            raise AssertionError(f"{error}; the cell: {cell.error}: {cell.text[-1000:]}") from None

    def at(self, address: str) -> psutil.Process:
        """The process of the pool that listens there: a worker, or the head."""
        return next(p for p in self.notebook.descendants() if listens_on(p, address))

    def worker(self) -> psutil.Process:
        """The worker of any device."""
        return self.at(self.luck.choice(self.value("[device.worker for device in pool.devices]")))

    def head(self) -> psutil.Process:
        return self.at(self.value("pool.engine.address"))

    def wait_for_devices(self) -> None:
        """A worker that was lost is replaced within seconds."""
        until(lambda: self.value("len(pool.devices)") == DEVICES, f"{DEVICES} devices in the pool again")

    def disturb(self) -> None:
        """A worker is about to go: cells that are on it may end with it."""
        for each in self.later:
            each.is_disturbed = True


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(LOOK_SECONDS)


def kill(pid: int) -> None:
    """SIGKILL; it may have ended by itself in this moment."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def freeze(pid: int, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after so long."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def all_said(cell: Cell, what: str, gpus: int) -> None:
    """Check that a line of so many ranks was shown: ``[0-1,3] what``, and without numbers where there is one."""
    text, found = cell.stream(), set[int]()
    for numbers in re.findall(rf"^\[([\d,-]+)\] {re.escape(what)}$", text, re.MULTILINE):
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    if gpus == 1 and what in text.splitlines():
        found = {0}
    assert found == set(range(gpus)), f"{gpus} ranks were to say {what!r}; it was said by {found}: …{text[-300:]}"
