"""A driver of NVIDIA GPUs that are not there: the real nvidia-ml-py talks to a stub of NVML, built from nvml_stub.c.

Settings, for all GPUs, for one (``gpu1.lost``), or for one MIG instance (``gpu1.mig0.memory_total_mb``):

- ``count`` of GPUs (2), ``name``, ``utilisation`` (percent), ``temperature``, ``power_mw``, ``power_limit_mw``
- ``memory_total_mb``, ``memory_used_mb``, ``memory_reserved_mb``; ``unified`` for a GPU that has none of its own
- ``compute`` and ``graphics``: processes as ``pid:MiB,pid:MiB``, where -1 MiB is "not available"
- ``use``: how busy each keeps it, as ``pid:percent,pid:percent``; -1 for a driver that does not tell
- ``busy_pid``: a process without which it takes only ``idle_power_mw``, when it is stopped or gone
- ``may_limit``: its power limit may be set, from ``least_limit_mw`` to ``most_limit_mw``; `power_limit` says to what
- ``mig``: MIG mode is on, with so many instances; ``plain_names``: the driver gives instances the name of their GPU
- ``lost``: fallen off the bus, as long as this is set; old handles stay dead until NVML is shut down
- ``fail.<function>``: the code that this function of NVML returns; ``hang.<function>``: for how many seconds it hangs
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"


def build_stub(directory: Path, without: Iterable[str] = ()) -> Path:
    """Build the stub into ``directory``. An old driver is one ``without`` some functions."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler to build a stub of NVML with")
    directory.mkdir(parents=True, exist_ok=True)
    symbols = directory / "symbols"
    local = "".join(f"{name};" for name in without)
    symbols.write_text(f"{{ global: *; {f'local: {local}' if local else ''} }};")
    options = ("-shared", "-fPIC", "-O1", f"-Wl,-soname,{LIBRARY}", f"-Wl,--version-script={symbols}")
    subprocess.run([compiler, *options, "-o", str(directory / LIBRARY), str(SOURCE)], check=True)
    return directory


def environment(directory: Path, **settings: object) -> dict[str, str]:
    """The environment for a process that is to see the GPUs of the stub in ``directory``, with these settings alone."""
    _settings(directory).unlink(missing_ok=True)
    change(directory, **settings)
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_VISIBLE_DEVICES")}
    paths = [str(directory), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {**inherited, "FAKE_NVML": str(_settings(directory)), "LD_LIBRARY_PATH": os.pathsep.join(paths)}


def change(directory: Path, **settings: object) -> None:
    """Change settings, also of processes that run. None takes one back."""
    file = _settings(directory)
    lines = file.read_text().splitlines() if file.exists() else []
    merged: dict[str, object] = {**dict(line.split("=", 1) for line in lines), **settings}
    text = "".join(f"{name}={value}\n" for name, value in merged.items() if value is not None)
    written = file.with_suffix(".new")
    written.write_text(text)
    written.replace(file)


def power_limit(directory: Path, gpu: int = 0) -> int | None:
    """The limit in milliwatts that was set of a GPU; None where none ever was."""
    file = directory / f"settings.limit{gpu}"
    return int(file.read_text()) if file.exists() else None


def _settings(directory: Path) -> Path:
    return directory / "settings"
