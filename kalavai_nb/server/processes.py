"""Whether a process of this machine lives. Knows Linux well, and elsewhere only what a signal tells."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from kalavai_nb.state import machine_id

# of a node id that Python has made up, since the machine has none: then each process has another
MADE_UP = 1 << 40
# between the clock of the files and that of the processes
CLOCK_SECONDS = 5.0


def is_here(machine: str, host: str) -> bool:
    """Whether a process that says this of its machine is on ours."""
    ours = machine_id()
    return machine == ours or (host == socket.gethostname() and _is_made_up(machine) and _is_made_up(ours))


def is_alive(pid: int, last_seen: float) -> bool:
    """Whether this process lives, and is the one that wrote a file at ``last_seen`` (as of ``time.time()``)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's: the number has been given away
        return False
    state, started = _linux_stat(pid)
    return state not in ("Z", "X") and started <= last_seen + CLOCK_SECONDS


def _linux_stat(pid: int) -> tuple[str, float]:
    """Its state, and when it began as of ``time.time()``; ("", 0) where that is not known."""
    try:
        # the name of the program comes before, in parentheses, and may have any characters in it
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return fields[0].decode(), time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + after_boot
    except (OSError, AttributeError, ValueError, IndexError):
        return "", 0.0


def _is_made_up(machine: str) -> bool:
    try:
        return bool(int(machine.rpartition("-")[2], 16) & MADE_UP)
    except ValueError:
        return False
