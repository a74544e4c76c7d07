"""What becomes of a cell that is stopped or breaks, and of the next one; tests/test_faults.py tests behaviour."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from notebook import Notebook
from tests.benchmarks.cell_peers import OURS, Peer, all_opened, is_installed, opened
from tests.benchmarks.table import Row, figure

RANKS = 2
NAMES = ("ipyparallel", "jupyter-distributed", "nbdistributed")
LIMIT_SECONDS = 35.0
SLEEP = "import time\ntime.sleep(600)"
BUSY = "while True: pass"
COLLECTIVE = (
    "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\ndist.recv(torch.ones(1), src=1 - rank)"
)
STUBBORN = "import time\nwhile True:\n    try:\n        time.sleep(0.1)\n    except KeyboardInterrupt:\n        pass"
RAISES = """import torch, torch.distributed as dist, time
dist.init_process_group("gloo")
if rank == 1:
    print('now', time.time(), flush=True)
    raise ValueError("no data")
dist.all_reduce(torch.ones(1))"""


@dataclass(frozen=True)
class End:
    """How a cell ended, if it did, and whether the next one ran where it should."""

    seconds: float
    failed: bool = False
    ranks_after: int = 0

    def __str__(self) -> str:
        if self.seconds > LIMIT_SECONDS:
            return f"not ended after {LIMIT_SECONDS:.0f} s"
        said = "fails" if self.failed else 'ends as "ok"'
        return f"{self.seconds:.2g} s, {said}, next cell on {self.ranks_after} of {RANKS}"

    @property
    def is_clean(self) -> bool:
        """A cell that was cut short lets none below it run by itself, and the next one runs as if nothing had been."""
        return self.failed and self.ranks_after == RANKS


def measure() -> Iterator[Row]:
    yield _compare("■ in a sleeping cell", 2, _interrupt)
    yield _compare("SIGKILL of a rank", 2, _kill)
    with opened(OURS, RANKS) as notebook:
        for name, body, limit in (
            ("a busy loop", BUSY, 2),
            ("a hung collective", COLLECTIVE, 10),
            ("code that swallows it", STUBBORN, 20),
        ):
            yield figure(f"■ in {name}, to the end of the cell", _interrupt(OURS, notebook, body).seconds, "s", limit)
        cell = notebook.run(OURS.sends(RAISES, RANKS))
        happened = max(float(line.split()[-1]) for line in cell.stream().splitlines() if "now" in line)
        what = "one rank raises before all_reduce, to the end of the cell"
        yield figure(what, time.time() - happened, "s", 10, note=cell.error[:60])


def _compare(what: str, limit_seconds: float, happens: Callable[[Peer, Notebook], End]) -> Row:
    with opened(OURS, RANKS) as notebook:
        ours = happens(OURS, notebook)
    ends: dict[str, End] = {}
    for name in NAMES:
        # one after another: what was stopped wrongly may go on using a core
        with all_opened((name,), RANKS) as peers:
            ends |= {peer: happens(*system) for peer, system in peers.items()}
    must = f"≤ {limit_seconds:g} s, fails, next on {RANKS}"
    met = ours.seconds <= limit_seconds and ours.is_clean
    said = {name: str(ends.get(name, "did not start")) for name in filter(is_installed, NAMES)}
    return Row(f"{what}, to its end", str(ours), said, must, met)


def _begun(peer: Peer, notebook: Notebook, body: str) -> tuple[str, list[int]]:
    """A request whose ranks are at work, and their processes."""
    for _ in range(3):
        notebook.run(peer.sends("pass", RANKS))
    # peers may put words of one line on lines of their own, or show what was printed only in the end
    me = "import os\nprint(f'pid={os.getpid()}.', flush=True)"
    pids = [int(pid) for pid in re.findall(r"pid=(\d+)\.", notebook.run(peer.sends(me, RANKS)).text)]
    request = notebook.begin(peer.sends(body, RANKS))
    time.sleep(2)
    return request, pids


def _ended(peer: Peer, notebook: Notebook, request: str) -> End:
    happened = time.monotonic()
    try:
        cell = notebook.finish(request, LIMIT_SECONDS)
    except TimeoutError:
        return End(2 * LIMIT_SECONDS)
    seconds = time.monotonic() - happened
    try:
        text = notebook.run(peer.sends("print('still' + 'here')", RANKS), LIMIT_SECONDS).text
    except TimeoutError:
        text = ""
    # equal lines of several ranks are shown once, with the ranks before them
    merged = re.findall(r"\[(\d+)-(\d+)\] stillhere", text)
    after = sum(int(last) - int(first) + 1 for first, last in merged) if merged else text.count("stillhere")
    return End(seconds, cell.status == "error", after)


def _interrupt(peer: Peer, notebook: Notebook, body: str = SLEEP) -> End:
    request, _ = _begun(peer, notebook, body)
    notebook.interrupt()
    return _ended(peer, notebook, request)


def _kill(peer: Peer, notebook: Notebook) -> End:
    request, pids = _begun(peer, notebook, SLEEP)
    os.kill(pids[-1], signal.SIGKILL)
    return _ended(peer, notebook, request)
