"""How fast a device multiplies matrices and copies memory: timed once, in half a second, and remembered.

It is measured in a child of the fork server that sees this device alone, so that neither a driver nor its memory
stays in a process that lives on. Figures are kept in the user's cache directory, by device and by version of torch.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kalavai_nb.places import read_private, write_private
from kalavai_nb.state import Device
from kalavai_nb.worker.child import begin, pipe
from kalavai_nb.worker.devices import visible

FILE = "speeds.json"
# a first call into a driver that has to be loaded takes its time
PATIENCE_SECONDS = 60.0
# of each of the two; the first call, which sets things up, is not counted
TIMED_SECONDS = 0.2
CPU_SIDE, GPU_SIDE = 1024, 4096
CPU_COPY_BYTES, GPU_COPY_BYTES = 1 << 26, 1 << 28

Figures = tuple[float, float]
# by this process, also those that could not be timed
_found: dict[str, Figures | None] = {}


def timed(devices: Sequence[Device], environments: Sequence[Mapping[str, str]] | None = None) -> list[Device]:
    """The same devices with what is known of their speed; one that cannot be timed has no figures.

    ``environments`` is what the children of each find in theirs (see `begin`). For a process without threads.
    """
    pairs = list(zip(devices, environments or [{}] * len(devices), strict=True))
    names = [_name(device, environment) for device, environment in pairs]
    if not _found.keys() >= set(names):
        kept = _read()
        for name, (device, environment) in zip(names, pairs, strict=True):
            if name not in _found:
                _found[name] = kept.get(name) or measure(device, environment)
        new = {name: figures for name in names if (figures := _found[name]) and name not in kept}
        if new:
            _write({**kept, **new})
    return [_with(device, _found[name]) for name, device in zip(names, devices, strict=True)]


def measure(device: Device, environment: Mapping[str, str] | None = None) -> Figures | None:
    """(operations per second of a matrix product, bytes per second that a copy reads and writes), in a child.

    None where the device does not do it, or not in time.
    """
    receiver, sender = pipe()
    seen = {**(environment or {}), **visible(device)}
    child = begin(_measure, (device.torch_name, sender), seen, Path(os.devnull))
    sender.close()
    try:
        figures: Figures | None = receiver.recv() if receiver.poll(PATIENCE_SECONDS) else None
    except (EOFError, OSError):
        figures = None
    finally:
        receiver.close()
        child.kill()
        child.join()
    return figures


# in the child


def _measure(name: str, sender: Connection) -> None:
    import torch

    is_cpu = name == "cpu"
    side, size = (CPU_SIDE, CPU_COPY_BYTES) if is_cpu else (GPU_SIDE, GPU_COPY_BYTES)
    # what models are computed in, where it is fast
    dtype = torch.float32 if is_cpu else torch.float16
    a, b = (torch.randn(side, side, device=name).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(size // 4, dtype=torch.float32, device=name)
    target = torch.empty_like(source)

    def best(act: Any) -> float:
        return min(_seconds(act, torch, name))

    multiply = best(lambda: torch.matmul(a, b, out=out))
    copy = best(lambda: target.copy_(source))
    sender.send((2 * side**3 / multiply, 2 * size / copy))


def _seconds(act: Any, torch: Any, name: str) -> Iterator[float]:
    """How long each call takes, for as long as is worth it; the first is not told."""
    act()
    _wait(torch, name)
    end = time.perf_counter() + TIMED_SECONDS
    while True:
        started = time.perf_counter()
        act()
        _wait(torch, name)
        yield time.perf_counter() - started
        if time.perf_counter() > end:
            return


def _wait(torch: Any, name: str) -> None:
    """GPUs are told what to do, and do it later."""
    if name.startswith("cuda"):
        torch.cuda.synchronize()
    elif name == "mps":
        torch.mps.synchronize()


# what is remembered


def _name(device: Device, environment: Mapping[str, str]) -> str:
    """Stand-ins of one machine are alike, and their cores are counted."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "none"
    which = f"{device.name} x{environment.get('OMP_NUM_THREADS', '')}" if device.kind == "cpu" else device.id
    return f"{device.kind} {which} torch {torch}"


def _with(device: Device, figures: Figures | None) -> Device:
    if figures is None:
        return device
    return replace(device, flops=figures[0], copy_bytes_per_second=figures[1])


def _file() -> Path:
    from platformdirs import user_cache_path

    chosen = os.environ.get("KALAVAI_HOME")
    return (Path(chosen).expanduser() if chosen else user_cache_path("kalavai", appauthor=False)) / FILE


def _read() -> dict[str, Figures]:
    """What was measured before; what cannot be meant was not."""
    try:
        kept = json.loads(read_private(_file()))
        pairs = {str(name): (float(flops), float(copied)) for name, (flops, copied) in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {name: pair for name, pair in pairs.items() if all(math.isfinite(each) and each > 0 for each in pair)}


def _write(kept: dict[str, Figures]) -> None:
    try:
        write_private(_file(), json.dumps(kept, indent=1))
    except OSError:  # it is measured again next time
        return
