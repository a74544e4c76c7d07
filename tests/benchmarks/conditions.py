"""What figures were measured on: the machine, and the versions of all that took part."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# besides the peers that the requirements name
OURS = ("kalavai-nb", "torch", "distributed", "ipykernel", "optuna", "transformers", "bitsandbytes", "scikit-learn")


def machine() -> str:
    """Cores, memory, system and Python, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} cores{_model()}, {memory:.0f} GiB, {platform.system()}, {python}"


def versions() -> str:
    """Of everything that took part and is installed."""
    return ", ".join(_installed())


def _installed() -> Iterator[str]:
    peers = re.findall(r"^[\w-]+", REQUIREMENTS.read_text(), re.MULTILINE)
    for package in (*OURS, *peers):
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{package} {metadata.version(package)}"


def _model() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        return f" of {' '.join(found[1].split())}" if found else ""
    return ""
