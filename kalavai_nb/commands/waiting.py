"""Waiting for the end of a process that serves a pool."""

from __future__ import annotations

import os
import select
import sys

import psutil


def wait_for_end(pid: int) -> None:
    """Return when there is no such process of this user any more."""
    if sys.platform == "linux":
        try:
            file = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError:
            # an old kernel
            pass
        else:
            with open(file, "rb", buffering=0):
                select.select([file], [], [])
            return
    try:
        psutil.Process(pid).wait()
    except psutil.NoSuchProcess:
        return
