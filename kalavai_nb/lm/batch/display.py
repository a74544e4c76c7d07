"""The picture of a run: rows, tokens per second, time left, and what failed, in the cell that began it."""

from __future__ import annotations

import html
import re
import secrets
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from kalavai_nb.screen import LiveDisplay
from kalavai_nb.trials.display import duration

BAR_CHARACTERS = 30
LINE_CHARACTERS = 150
ERROR_LINES = 5
# kinds of errors that are told apart
MOST_REASONS = 1000
# over which tokens per second are measured
RATE_SECONDS = 20.0
# a script says how far it is so often
LINE_SECONDS = 10.0


@dataclass
class Progress:
    """How far a run is. ``total`` is None where only the end will tell; ``had`` rows were done before it began."""

    title: str
    total: int | None = None
    had: int = 0
    done: int = 0
    tokens: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    note: str = ""
    is_over: bool = False
    started: float = field(default_factory=time.monotonic)
    _rates: deque[tuple[float, int]] = field(default_factory=deque)

    def fail(self, error: str) -> None:
        """One more row failed; errors that differ by numbers alone are one kind."""
        self.failed += 1
        kind = re.sub(r"\d+", "…", error.splitlines()[0] if error else "")
        self.reasons[kind if kind in self.reasons or len(self.reasons) < MOST_REASONS else "other errors"] += 1

    def tokens_per_second(self, now: float) -> float:
        """Over the last seconds, and over all of the run once that is over."""
        if self.is_over:
            return self.tokens / max(1e-9, now - self.started)
        if not self._rates:
            self._rates.append((self.started, 0))
        self._rates.append((now, self.tokens))
        while len(self._rates) > 2 and now - self._rates[0][0] > RATE_SECONDS:
            self._rates.popleft()
        since, tokens = self._rates[0]
        return (self.tokens - tokens) / max(1e-9, now - since)

    def facts(self, now: float) -> str:
        seconds, done_now = now - self.started, self.done - self.had
        parts = [f"{self.tokens_per_second(now):,.0f} tokens/s", duration(seconds)]
        if self.total and done_now > 0 and self.done < self.total and not self.is_over:
            parts.append(f"about {duration(seconds / done_now * (self.total - self.done))} left")
        parts += [f"{self.had} from before"] * bool(self.had) + [f"{self.failed} failed"] * bool(self.failed)
        return "; ".join(parts)

    def lines(self) -> list[str]:
        kinds = self.reasons.most_common()
        lines = [*self.note.splitlines()[:1], *(f"{count} × {reason}" for reason, count in kinds[:ERROR_LINES])]
        lines += [f"and {len(kinds) - ERROR_LINES} more kinds of error"] * (len(kinds) > ERROR_LINES)
        return [line[:LINE_CHARACTERS] for line in lines]

    @property
    def rows(self) -> str:
        return f"{self.done}/{self.total} rows" if self.total is not None else f"{self.done} rows"

    def line(self, now: float) -> str:
        """In one line."""
        return f"{self.title}: {self.rows}; {self.facts(now)}"

    def text(self, now: float) -> str:
        filled = BAR_CHARACTERS * self.done // self.total if self.total else 0
        bar = f" [{'█' * filled}{'·' * (BAR_CHARACTERS - filled)}]" if self.total else ""
        head = f"{self.title}{bar} {self.rows}; {self.facts(now)}"
        return "\n".join([head, *(f"  {line}" for line in self.lines())])

    def html(self, now: float) -> str:
        bar = f"<progress value='{self.done}' max='{self.total}'></progress> " if self.total else ""
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self.lines())
        return (
            f"<div><b>{html.escape(self.title)}</b> {bar}{self.rows}; {html.escape(self.facts(now))}</div>"
            f"<div style='font-family: monospace; white-space: pre; padding-left: 1em'>{lines}</div>"
        )


class CellDisplay:
    """One display, updated in place. Drawn first in the cell that begins, so that this is where it stays."""

    def __init__(self) -> None:
        self._display = LiveDisplay(f"map-{secrets.token_hex(4)}")

    def draw(self, progress: Progress, *, last: bool = False) -> None:
        if last or self._display.is_due():
            now = time.monotonic()
            data = {"text/plain": progress.text(now), "text/html": progress.html(now)}
            self._display.draw(data, last=last)


class Lines:
    """A line to stderr now and then, for scripts."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def draw(self, progress: Progress, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._said_at >= LINE_SECONDS:
            self._said_at = now
            print(progress.text(now) if last else progress.line(now), file=sys.stderr, flush=True)


class Hidden:
    """Nothing, for ``show=False``."""

    def draw(self, progress: Progress, *, last: bool = False) -> None:
        pass


def make_display(show: bool) -> CellDisplay | Lines | Hidden:
    """What fits where this runs."""
    from IPython import get_ipython

    if not show:
        return Hidden()
    return Lines() if get_ipython() is None else CellDisplay()
