"""The live picture of a sweep: a few lines of fixed height, whatever the number of trials."""

from __future__ import annotations

import html
import secrets
import time
from collections import Counter

from kalavai_nb.screen import LiveDisplay
from kalavai_nb.state import Trial, TrialState

BAR_CHARACTERS = 30
ERROR_LINES = 5
DEVICE_LINES = 12


class SweepDisplay:
    """Draws trials into one display of the cell that began the sweep."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._display = LiveDisplay(f"sweep-{secrets.token_hex(4)}")
        self._started = time.monotonic()

    def draw_if_due(self, trials: list[Trial], *, last: bool = False) -> None:
        if last or self._display.is_due():
            self.draw(trials)

    def draw(self, trials: list[Trial]) -> None:
        text = describe(self._name, trials, time.monotonic() - self._started)
        self._display.draw({"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"})


def describe(name: str, trials: list[Trial], seconds: float) -> str:
    """Progress, time left, the devices at work, and failures with equal errors folded."""
    counts = Counter(trial.state for trial in trials)
    finished = sum(count for state, count in counts.items() if state.is_finished())
    filled = BAR_CHARACTERS * finished // len(trials) if trials else BAR_CHARACTERS
    states = ", ".join(f"{counts[state]} {state.lower()}" for state in TrialState if counts[state])
    left = f", about {seconds / finished * (len(trials) - finished):.0f} s left" if 0 < finished < len(trials) else ""
    bar = "█" * filled + "·" * (BAR_CHARACTERS - filled)
    lines = [f"{name} [{bar}] {finished}/{len(trials)}: {states}; {seconds:.1f} s{left}"]
    running = [f"  {trial.device}: trial {trial.index}" for trial in trials if trial.state is TrialState.RUNNING]
    lines += running[:DEVICE_LINES] + [f"  and {len(running) - DEVICE_LINES} more"] * (len(running) > DEVICE_LINES)
    errors = Counter(f"{type(trial.error).__name__}: {trial.error}".splitlines()[0] for trial in trials if trial.error)
    lines += [f"  {count} × {error}"[:160] for error, count in errors.most_common(ERROR_LINES)]
    return "\n".join(lines)
