"""Stops process groups for a moment: each line of its input names those that are to be stopped now.

Run as a script, by its path, with nothing but the standard library, so that it starts in an instant. What is stopped
goes on when a line leaves it out, when no line has come for a while, and when the input ends.
"""

import contextlib
import os
import select
import signal

PATIENCE_SECONDS = 1.0


def main() -> None:
    """Stop and let go until the input ends."""
    stopped: set[int] = set()
    rest = b""
    try:
        while True:
            if not select.select([0], [], [], PATIENCE_SECONDS if stopped else None)[0]:
                stopped = change(stopped, set())
                continue
            piece = os.read(0, 65536)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            if lines:
                stopped = change(stopped, {int(word) for word in lines[-1].split()})
    finally:
        change(stopped, set())


def change(stopped: set[int], wanted: set[int]) -> set[int]:
    """Let go of what is not wanted any more, and stop what is."""
    for groups, number in ((stopped - wanted, signal.SIGCONT), (wanted - stopped, signal.SIGSTOP)):
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
    return wanted


if __name__ == "__main__":
    main()
