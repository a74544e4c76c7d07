"""Pools that are not there, made known as real ones are: many devices, or some that are good to look at."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kalavai_nb.registry.entry import Entry

GIB = 2**30
CARDS = (("NVIDIA GeForce RTX 4090", 24, 450), ("NVIDIA RTX A6000", 48, 300), ("NVIDIA H100 80GB HBM3", 80, 700))
ORDERS_SECONDS = 0.1
ADA, BOB = "Client-ada", "Client-bob"
Snapshot = dict[str, Any]


def wave(place: int, second: float) -> float:
    """A utilisation that changes from second to second, another one at each place."""
    return 0.5 + 0.5 * math.sin(place * 1.7 + second / 40)


def device(box: int, index: int, second: float, level: float = 1.0) -> Snapshot:
    name, memory, limit = CARDS[box % 3]
    use = level * wave(5 * box + index, second)
    # a bin of history is of ten seconds
    past = [wave(5 * box + index, 10 * (second // 10 - 59 + bin)) * level for bin in range(60)]
    return {
        "index": index,
        "kind": "cuda",
        "name": name,
        "host": f"gpu-box-{box + 1}",
        "machine": f"gpu-box-{box + 1}-00aa",
        "memory_bytes": memory * GIB,
        "reading": {
            "memory_used_bytes": int(memory * GIB * (0.04 + 0.8 * level * (0.4 + 0.6 * use))),
            "memory_total_bytes": memory * GIB,
            "utilisation": round(use, 2),
            "temperature_celsius": round(36 + 40 * use),
            "power_watts": round(limit * (0.1 + 0.8 * use)),
            "power_limit_watts": limit,
        },
        "history": {
            "utilisation": [round(100 * each) for each in past],
            "memory": [round(100 * (0.04 + 0.8 * level * (0.4 + 0.6 * each))) for each in past],
        },
    }


def snapshot(boxes: int, each: int, second: float) -> Snapshot:
    """So many machines with so many GPUs, ``second`` seconds after the beginning."""
    boxed = [(box, index) for box in range(boxes) for index in range(each)]
    return {
        "version": 1,
        "id": "5e1f00d5e1f0",
        "pool": "training.ipynb (812)",
        "time": time.time(),
        "machines": {f"gpu-box-{box + 1}-00aa": {"host": f"gpu-box-{box + 1}", "cores": 32} for box in range(boxes)},
        "devices": {f"GPU-{box}-{index}": device(box, index, second) for box, index in boxed},
        "owners": {ADA: {"label": "training.ipynb (812)"}, BOB: {"label": "bob.ipynb (9)"}},
        "events": [],
        **{part: {} for part in ("leases", "queue", "cells", "sweeps", "models", "alerts")},
    }


def busy(second: float) -> Snapshot:
    """A sweep, a model, a cell, somebody who waits, a GPU held for nothing, and one that its owner takes back."""
    shown, now = snapshot(2, 3, second), time.time()
    for index in range(3):
        shown["devices"][f"GPU-0-{index}"]["limits"] = "80 % of memory; 22:00-08:00; when idle; at most 250 W"
    shown["devices"]["GPU-1-0"]["leaving"] = f"its owner takes it back: {110 - int(second) % 100} s left"
    shown["devices"]["GPU-1-2"] = device(1, 2, 0, 0.0)
    lease = {"owner": ADA, "label": "training.ipynb (812)", "share": 1.0, "running": True, "since": now - 300}
    done = min(58, 23 + int(second / 20))
    shown |= {
        "leases": {
            "a": {**lease, "kind": "trial", "what": "sweep lr", "devices": ["GPU-0-0", "GPU-0-1"]},
            "b": {**lease, "kind": "model", "what": "model SmolLM2", "devices": ["GPU-0-2", "GPU-1-0"]},
            "c": {**lease, "kind": "session", "what": "cell 7", "devices": ["GPU-1-1"]},
            "d": {
                **lease,
                "kind": "session",
                "owner": BOB,
                "label": "bob.ipynb (9)",
                "running": False,
                "since": now - 400,
                "devices": ["GPU-1-2"],
            },
        },
        "queue": {
            "q": {
                "owner": BOB,
                "label": "bob.ipynb (9)",
                "count": 2,
                "since": now - 12,
                "reason": "1st in the queue; 0 of 2 devices free",
            }
        },
        "cells": {
            "c": {
                "owner": ADA,
                "number": 7,
                "text": "loss = train(model, epochs=30)",
                "ranks": 1,
                "devices": ["GPU-1-1"],
                "since": now - 65,
            }
        },
        "sweeps": {
            f"{ADA}/lr": {
                "owner": ADA,
                "name": "lr",
                "fn": "train",
                "state": "running",
                "counts": {"COMPLETE": done, "RUNNING": 2, "WAITING": 58 - done, "FAILED": 2},
                "total": 62,
                "since": now - 300,
                "eta_seconds": 402.0,
                "best": "accuracy=0.97 with lr=0.01, width=64",
                "trouble": "2 × ValueError: width has to be even",
            }
        },
        "models": {
            f"{ADA}/m": {
                "owner": ADA,
                "name": "SmolLM2-135M-Instruct",
                "state": "running",
                "stages": [{"device": "GPU-0-2", "layers": [0, 12]}, {"device": "GPU-1-0", "layers": [12, 30]}],
                "spares": [],
                "tokens_per_second": 21.0 + wave(1, second),
                "requests": 2,
            }
        },
        "events": [{"time": now - 640, "kind": "joined", "text": "gpu-box-2 cuda:0 joined"}],
        "alerts": {
            "idle/GPU-1-2": {
                "kind": "idle",
                "device": "GPU-1-2",
                "text": "gpu-box-2 cuda:2 is held by bob.ipynb (9), and idle for 6 min",
            }
        },
    }
    return shown


class Published:
    """A pool that is made known in this runtime directory each second, until the end of the block.

    Orders are answered with what was ordered, and kept.
    """

    def __init__(self, runtime: Path, picture: Callable[[float], Snapshot]) -> None:
        self._picture = picture
        self._entry = Entry("5e1f00d5e1f0", ADA, "training.ipynb (812)", True, runtime / "kalavai_nb")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self.orders: list[tuple[str, str]] = []

    def _live(self) -> None:
        started, writes = time.monotonic(), 0
        while not self._ends.wait(ORDERS_SECONDS):
            second = time.monotonic() - started
            if second >= writes:
                self._entry.write(self._picture(second))
                writes += 1
            for order in self._entry.orders():
                self.orders.append((order.verb, order.target))
                self._entry.reply(order, True, f"{order.verb} {order.target} is done")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.set()
        self._thread.join()
        self._entry.remove()
