"""Round trips and output of cells, against ipyparallel's %%px on as many engines."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator

import psutil

from notebook import Notebook, listens_on
from tests.benchmarks.table import Row, spread

ROUNDS, CELLS_A_ROUND = 6, 15
LINES = "for i in range({count}): print(f'{{rank}} {{i:06d}} ' + 'x' * {width}{flush})"


def measure() -> Iterator[Row]:
    with Notebook() as ours, Notebook() as peer:
        ours.ok("%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        peer.ok("import ipyparallel as ipp\nrc = ipp.Cluster(n=4).start_and_connect_sync(activate=True)")
        for count in (2, 4):
            yield _empty_cell(ours, peer, count)
        yield _latency(ours)
        yield _flushed_lines(ours, peer)
        yield from _many_lines(ours)
        yield from _large_array(ours)


def _empty_cell(ours: Notebook, peer: Notebook, ranks: int) -> Row:
    """Alternately, so that a busy moment of the machine meets both."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    cells = {
        "ours": (ours, f"%%pool gpus={ranks}\npass"),
        "peer": (peer, f"%%px --targets 0:{ranks}\npass"),
    }
    for notebook, source in cells.values():
        for _ in range(5):
            notebook.ok(source)
    for _ in range(ROUNDS):
        for who, (notebook, source) in cells.items():
            seconds[who] += [1000 * notebook.ok(source).seconds for _ in range(CELLS_A_ROUND)]
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    return Row(f"empty cell, {ranks} ranks", medians["ours"], "ms", 1.0, medians["peer"], spread(seconds["ours"]))


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
    return Row("print to output, median", statistics.median(lags), "ms", 50, note=spread(lags))


def _flushed_lines(ours: Notebook, peer: Notebook) -> Row:
    """300 flushed lines of 100 bytes from each of 2 ranks: bytes of messages over bytes printed."""
    lines = LINES.format(count=300, width=90, flush=", flush=True")
    peer.ok("%%px --targets 0:2\nimport os\nrank = os.getpid()")
    cell = ours.ok(f"%%pool gpus=2\n{lines}")
    assert cell.stream().count("\n") == 600
    theirs = peer.ok(f"%%px --targets 0:2\n{lines}")
    printed = 2 * 300 * 100
    overhead, peers = cell.message_bytes / printed, theirs.message_bytes / printed
    return Row("300 flushed lines × 2: bytes sent / printed", overhead, "×", 3, note=f"ipyparallel {peers:.0f} ×")


def _many_lines(ours: Notebook) -> Iterator[Row]:
    """20,000 lines from each of 2 ranks: all, in order; the head's memory over 10 repeats."""
    address = ours.ok("pool._address").displays[0]["text/plain"].strip("'")
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
    yield Row("20,000 lines × 2, median", statistics.median(seconds), "s", 3, note=spread(seconds, "s"))
    growth = resident[-1] - resident[1]
    note = f"{resident[0]:.0f} → {resident[-1]:.0f} MiB over 10 repeats (33 MB printed)"
    yield Row("head's memory after that, growth", growth, "MiB", 10, note=note)


def _large_array(ours: Notebook) -> Iterator[Row]:
    """A 200 MB array used in two cells on 2 workers."""
    ours.ok("import numpy as np\narray = np.random.default_rng(0).random(25_000_000)")
    first = ours.ok("%%pool gpus=2\narray.sum()")
    assert "sent array (200 MB)" in first.stream(), first.stream()
    second = ours.ok("%%pool gpus=2\narray.sum()")
    assert "reused array (200 MB)" in second.stream(), second.stream()
    yield Row("200 MB array, first cell", first.seconds, "s", float("inf"), note="sent once, to the machine")
    yield Row("200 MB array, second cell", second.seconds, "s", first.seconds, note="reused; the time is its digest")
