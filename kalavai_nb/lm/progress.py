"""How far a model is while it is loaded: a line for each stage, updated in place."""

from __future__ import annotations

import secrets
import threading
import time

from kalavai_nb.lm.member import Member
from kalavai_nb.lm.ring import Ring
from kalavai_nb.screen import LiveDisplay

BAR_CHARACTERS = 20
PHASES = {"start": "starting", "fetch": "fetching", "read": "reading"}


class LoadProgress:
    """Draws into the cell that loads."""

    def __init__(self, name: str, show: bool) -> None:
        self._name, self._show = name, show
        self._display = LiveDisplay(f"load-{secrets.token_hex(4)}")
        self._started = time.monotonic()
        self._head = "looking for it"
        self._rings: dict[int, Ring] = {}
        self._lock = threading.Lock()
        self._is_drawn = False

    def converting(self, done: int, total: int) -> None:
        self._head = f"converting {100 * done // max(1, total)} %"
        self.draw()

    def waiting(self, reason: str) -> None:
        self._head = f"waiting: {reason}"
        self.draw(last=True)

    def news(self, ring: Ring) -> None:
        """On a ring's own thread."""
        with self._lock:
            self._rings[id(ring)] = ring

    def draw(self, last: bool = False) -> None:
        if self._show and (last or self._display.is_due()):
            self._display.draw({"text/plain": self._text()}, last=last)
            self._is_drawn = True

    def close(self, is_loaded: bool) -> None:
        """The last picture; a load that failed before there was any leaves none."""
        seconds = time.monotonic() - self._started
        self._head = f"{seconds:.1f} s" if is_loaded else f"not loaded, after {seconds:.1f} s"
        if is_loaded or self._is_drawn:
            self.draw(last=True)

    def _text(self) -> str:
        with self._lock:
            rings = list(self._rings.values())
        lines = [f"[pool] {self._name}: {self._head}"]
        for ring in rings:
            spares = {spare.name for spare in ring.spares} if ring.state == "running" else set()
            lines += [f"  {_line(member)}" for member in ring.members if member.name not in spares]
        return "\n".join(lines)


def _line(member: Member) -> str:
    phase, done, total = member.progress
    filled = BAR_CHARACTERS if member.layers else BAR_CHARACTERS * done // max(1, total)
    bar = "█" * filled + "·" * (BAR_CHARACTERS - filled)
    what = f"layers {member.layers[0]}–{member.layers[1] - 1}" if member.layers else PHASES[phase]
    return f"{member}  {bar}  {what} {total / 2**20:.0f} MiB"
