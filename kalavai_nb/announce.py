"""What we say among a cell's output: one line at a time, marked as ours."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
from pathlib import Path

from kalavai_nb.state import Device
from kalavai_nb.terminal import TERMINAL


def say(text: str) -> None:
    """One line of ours among a cell's output."""
    TERMINAL.forget()
    sys.stdout.write(f"[pool] {text}\n")
    with contextlib.suppress(ValueError):
        sys.stdout.flush()


def owner_label() -> str:
    """What other owners call this notebook or script."""
    name = Path(os.environ.get("JPY_SESSION_NAME", "") or sys.argv[0] or "python").name
    return f"{'notebook' if name == 'ipykernel_launcher.py' else name} ({os.getpid()})"


def person() -> str:
    """Who this is among people of several machines, ``ada@laptop``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def count_devices(devices: list[Device]) -> str:
    """``"4 CPU stand-ins"``, ``"2 NVIDIA RTX 4090, 1 NVIDIA RTX 3060"``."""
    names: dict[str, int] = {}
    for device in devices:
        kind = "CPU stand-in" if device.kind == "cpu" else device.name
        names[kind] = names.get(kind, 0) + 1
    counted = (f"{count} {name}{'s' * (count != 1 and name == 'CPU stand-in')}" for name, count in names.items())
    return ", ".join(counted) or "no devices yet"
