"""Displays in a plain terminal, where what was printed stays: only the last lines can be drawn over.

And those only while a call of ours is waited for: at other times a person types there, or their code prints.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import threading
import unicodedata
from collections.abc import Iterator

# colours and the like, which take no place
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Terminal:
    """Prints a display as it is at first and as it became at last; in between only where it can be drawn over."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waits = 0
        # the display that was printed last, while nothing came after it
        self._key, self._lines = "", 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Meanwhile nothing is printed but by us."""
        self._wait(1)
        try:
            yield
        finally:
            self._wait(-1)

    def forget(self) -> None:
        """Something else was printed."""
        with self._lock:
            self._key = ""

    def draw(self, key: str, text: str, *, update: bool, last: bool) -> bool:
        """Print a display, over itself if it is still the last thing there. Whether it was printed."""
        with self._lock:
            columns, rows = shutil.get_terminal_size()
            can_change = bool(self._waits and key and sys.stdout.isatty())
            if update and not last:
                # a line that is too long would be two, and what has left the screen stays as it is
                lines = [_cut(line, columns - 1) for line in text.splitlines()]
                if not can_change or len(lines) >= rows:
                    return False
                text = "\n".join(lines)
            back = f"\x1b[{self._lines}A\x1b[J" if can_change and key == self._key else ""
            sys.stdout.write(f"{back}{text}\n")
            sys.stdout.flush()
            height = sum(max(1, -(-_width(line) // columns)) for line in f"{text}\n".splitlines())
            self._key, self._lines = (key, height) if can_change and height < rows else ("", 0)
            return True

    def _wait(self, more: int) -> None:
        with self._lock:
            self._key = ""
            self._waits += more


TERMINAL = Terminal()


def in_kernel() -> bool:
    """Whether there is a front end that can be told again what it displays; a terminal prints once."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def _cut(line: str, columns: int) -> str:
    """As much of a line as there is room for, without colours."""
    line = _ESCAPES.sub("", line).expandtabs()[:columns]
    while _width(line) > columns:
        line = line[:-1]
    return line


def _width(line: str) -> int:
    """How many columns a line takes."""
    plain = _ESCAPES.sub("", line).expandtabs()
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else not unicodedata.combining(each) for each in plain)
