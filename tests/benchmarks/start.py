"""How long it takes until something can be done."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from tests.benchmarks.cell_peers import OURS, PEERS, Peer, is_installed, opened
from tests.benchmarks.table import Row, figure, spread

ROUNDS = 3
NAMES = ("ipyparallel", "jupyter-distributed", "nbdistributed")
IMPORT = "import time; t = time.perf_counter(); import kalavai_nb; print(time.perf_counter() - t)"


def measure() -> Iterator[Row]:
    """Import, and the first cell of a fresh kernel, alternating with peers."""
    times = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(5)]
    yield figure("import kalavai_nb", statistics.median(times), "s", 0.1, note=spread(times, "s"))
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, peer in {"kalavai_nb": OURS, **{name: PEERS[name] for name in filter(is_installed, NAMES)}}.items():
            with suppress(RuntimeError):  # where it did not come up
                seconds.setdefault(name, []).append(_first_cell(peer))
    # the first of each warmed the disk
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    note, ours = spread(seconds["kalavai_nb"][1:], "s"), medians.pop("kalavai_nb")
    yield figure("a kernel, its pool and its first cell on 4 ranks", ours, "s", 6, medians, note)


def _first_cell(peer: Peer) -> float:
    started = time.monotonic()
    with opened(peer, 4) as notebook:
        notebook.ok(peer.sends(f"print({peer.me})", 4))
        return time.monotonic() - started
