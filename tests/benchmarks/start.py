"""How long it takes until something can be done."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from notebook import Notebook
from tests.benchmarks.table import Row, spread

IMPORT = "import time; t = time.perf_counter(); import kalavai_nb; print(time.perf_counter() - t)"


def measure() -> Iterator[Row]:
    """Import, and the first cell of a fresh kernel, alternating with ipyparallel."""
    times = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(5)]
    yield Row("import kalavai_nb", statistics.median(times), "s", 0.1)
    ours, peers = [], []
    for _ in range(4):
        with Notebook() as notebook:
            notebook.ok("%load_ext kalavai_nb")
            started = time.monotonic()
            notebook.ok("import kalavai_nb as kn\npool = kn.Pool()")
            notebook.ok("%%pool gpus=4\nrank")
            ours.append(time.monotonic() - started)
        with Notebook() as notebook:
            started = time.monotonic()
            notebook.ok("import ipyparallel as ipp\nrc = ipp.Cluster(n=4).start_and_connect_sync(activate=True)")
            notebook.ok("%%px\n1")
            peers.append(time.monotonic() - started)
            notebook.ok("rc.shutdown(hub=True)")
    # the first of each warmed the disk
    ours, peers = ours[1:], peers[1:]
    note = f"{spread(ours, 's')}; ipyparallel {statistics.median(peers):.1f} s"
    yield Row("Pool() and the first cell on 4 ranks", statistics.median(ours), "s", 5, note=note)
