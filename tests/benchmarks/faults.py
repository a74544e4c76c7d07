"""How long it takes until a broken cell has ended. Behaviour is tested in tests/test_faults.py."""

from __future__ import annotations

import time
from collections.abc import Iterator

from notebook import Notebook
from tests.benchmarks.table import Row

SLEEP = "import time\ntime.sleep(600)"
BUSY = "while True: pass"
COLLECTIVE = (
    "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\ndist.recv(torch.ones(1), src=1 - rank)"
)
STUBBORN = "import time\nwhile True:\n    try:\n        time.sleep(0.1)\n    except KeyboardInterrupt:\n        pass"
KILLED = (
    "import os, time\ntime.sleep(1)\nprint('now', time.time(), flush=True)\ntime.sleep(0.2)\n"
    "if rank == 1: os.kill(os.getpid(), 9)\ntime.sleep(600)"
)
RAISES = """import torch, torch.distributed as dist, time
dist.init_process_group("gloo")
if rank == 1:
    print('now', time.time(), flush=True)
    raise ValueError("no data")
dist.all_reduce(torch.ones(1))"""


def measure() -> Iterator[Row]:
    with Notebook() as notebook:
        notebook.ok("%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        for name, body, limit in (
            ("a sleeping cell", SLEEP, 2),
            ("a busy loop", BUSY, 2),
            ("a hung collective", COLLECTIVE, 10),
            ("code that swallows it", STUBBORN, 20),
        ):
            notebook.ok("%%pool gpus=2\npass")
            request = notebook.begin(f"%%pool gpus=2\nprint('begun', flush=True)\n{body}")
            notebook.wait_for_text(request, "begun")
            time.sleep(1.5)
            pressed = time.monotonic()
            notebook.interrupt()
            cell = notebook.finish(request)
            yield Row(f"■ in {name}", time.monotonic() - pressed, "s", limit, note=cell.error.split(":")[0])
            notebook.ok("%%pool gpus=2\npass")
        for name, body, limit in (("SIGKILL of a rank", KILLED, 2), ("one rank raises before all_reduce", RAISES, 10)):
            cell = notebook.run(f"%%pool gpus=2\n{body}")
            happened = max(float(line.split()[-1]) for line in cell.stream().splitlines() if "now" in line)
            yield Row(f"{name} to the end of the cell", time.time() - happened, "s", limit, note=cell.error[:60])
            notebook.ok("%%pool gpus=2\npass")
