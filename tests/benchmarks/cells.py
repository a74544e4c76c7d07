"""Round trips and output of cells, against ipyparallel, jupyter-distributed, nbdistributed and afar."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator

import psutil

from notebook import Cell, Notebook, listens_on
from tests.benchmarks.cell_peers import OURS, Peer, all_opened, opened
from tests.benchmarks.table import Row, figure, spread

ROUNDS, CELLS_A_ROUND = 6, 15
ALL = ("ipyparallel", "jupyter-distributed", "nbdistributed")
LINES = "for i in range({count}): print(f'{{rank}} {{i:06d}} ' + 'x' * {width}{flush})"
Systems = dict[str, tuple[Peer, Notebook]]


def measure() -> Iterator[Row]:
    with opened(OURS, 4) as ours:
        for count, names in ((1, ("afar",)), (2, ALL), (4, ALL)):
            with all_opened(names, count) as peers:
                systems: Systems = {"kalavai_nb": (OURS, ours), **peers}
                yield _empty_cell(systems, count)
                if count == 2:
                    yield _flushed_lines(systems)
        yield _latency(ours)
        yield from _many_lines(ours)
        yield from _large_array(ours)


def _empty_cell(systems: Systems, ranks: int) -> Row:
    """Alternately, so that a busy moment of the machine meets all."""
    milliseconds: dict[str, list[float]] = {name: [] for name in systems}
    for peer, notebook in systems.values():
        for _ in range(5):
            notebook.ok(peer.sends("pass", ranks))
    for _ in range(ROUNDS):
        for name, (peer, notebook) in systems.items():
            cells = [notebook.ok(peer.sends("pass", ranks)) for _ in range(CELLS_A_ROUND)]
            milliseconds[name] += [1000 * cell.seconds for cell in cells]
    medians = {name: statistics.median(values) for name, values in milliseconds.items()}
    ours, note = medians.pop("kalavai_nb"), spread(milliseconds["kalavai_nb"])
    what = f"an empty cell on {ranks} rank{'s' if ranks > 1 else ''}"
    return figure(what, ours, "ms", 1.0, medians, note, of_ratio=True)


def _latency(ours: Notebook) -> Row:
    """From print in a rank to the message that a front end gets."""
    source = (
        "%%pool gpus=2\nimport time\n"
        "for i in range(40):\n    print('at', time.time(), rank, flush=True); time.sleep(0.1)"
    )
    lags = []
    for came, message in ours.ok(source).messages:
        text = message["content"].get("text", "") if message["msg_type"] == "stream" else ""
        lags += [1000 * (came - float(said)) for said in re.findall(r"at ([\d.]+)", text)]
    assert len(lags) == 80
    return figure("from print in a rank to its output", statistics.median(lags), "ms", 50, note=spread(lags))


def _flushed_lines(systems: Systems) -> Row:
    """300 flushed lines of 100 bytes from each of 2 ranks: bytes of messages over bytes printed."""

    def overhead(peer: Peer, notebook: Notebook) -> float:
        notebook.ok(peer.sends(f"rank = {peer.me}", 2))
        cell: Cell = notebook.ok(peer.sends(LINES.format(count=300, width=90, flush=", flush=True"), 2))
        return cell.message_bytes / (2 * 300 * 100)

    overheads = {name: overhead(*system) for name, system in systems.items()}
    ours = overheads.pop("kalavai_nb")
    return figure("300 flushed lines from 2 ranks: bytes sent for each printed", ours, "bytes", 3, overheads)


def _many_lines(ours: Notebook) -> Iterator[Row]:
    """20,000 lines from each of 2 ranks: all, in order; the head's memory over 10 repeats."""
    address = ours.ok("pool.engine.address").displays[0]["text/plain"].strip("'")
    (head,) = [process for process in ours.descendants() if listens_on(process, address)]
    source = f"%%pool gpus=2\n{LINES.format(count=20_000, width=60, flush='')}"
    seconds, resident = [], []
    for _ in range(10):
        started = time.monotonic()
        cell = ours.ok(source)
        seconds.append(time.monotonic() - started)
        resident.append(psutil.Process(head.pid).memory_info().rss / 2**20)
        said: dict[str, list[int]] = {"0": [], "1": []}
        for rank, number in re.findall(r"\] (\d) (\d{6}) x", cell.stream()):
            said[rank].append(int(number))
        assert all(numbers == list(range(20_000)) for numbers in said.values()), "lines lost or out of order"
    yield figure("20,000 lines from each of 2 ranks", statistics.median(seconds), "s", 3, note=spread(seconds, "s"))
    growth = resident[-1] - resident[1]
    note = f"{resident[0]:.0f} → {resident[-1]:.0f} MiB over 10 repeats (33 MB printed)"
    yield figure("growth of the head after that", growth, "MiB", 10, note=note)


def _large_array(ours: Notebook) -> Iterator[Row]:
    """A 200 MB array used in two cells on 2 workers."""
    ours.ok("import numpy as np\narray = np.random.default_rng(0).random(25_000_000)")
    first = ours.ok("%%pool gpus=2\narray.sum()")
    assert "sent array (200 MB)" in first.stream(), first.stream()
    second = ours.ok("%%pool gpus=2\narray.sum()")
    assert "reused array (200 MB)" in second.stream(), second.stream()
    yield figure("200 MB array, first cell", first.seconds, "s", None, note="sent once, to the machine")
    peers = {"the first": first.seconds}
    yield figure("200 MB array, second cell", second.seconds, "s", 1, peers, "the time is its digest", of_ratio=True)
