"""The live picture of a sweep: a few lines of fixed height, whatever the number of trials."""

from __future__ import annotations

import html
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kalavai_nb.screen import LiveDisplay
from kalavai_nb.state import Trial, TrialState, brief
from kalavai_nb.trials.progress import reasons, seconds_left, value_text
from kalavai_nb.trials.trial_list import TrialList

BAR_CHARACTERS = 30
SPARK_CHARACTERS = 16
LINE_CHARACTERS = 150
# with the lines around them, not more than 25
ERROR_LINES = 5
DEVICE_LINES = 12
SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Picture:
    """What there is to see: how far it is, and lines about devices, the best trial and failures."""

    title: str
    finished: int
    total: int
    facts: str
    lines: tuple[str, ...]

    def text(self) -> str:
        filled = BAR_CHARACTERS * self.finished // self.total if self.total else 0
        bar = "█" * filled + "·" * (BAR_CHARACTERS - filled)
        head = f"{self.title} [{bar}] {self.finished}/{self.total}: {self.facts}"
        return "\n".join([head, *(f"  {line}"[:LINE_CHARACTERS] for line in self.lines)])

    def html(self) -> str:
        lines = "".join(f"<div>{html.escape(line[:LINE_CHARACTERS])}</div>" for line in self.lines)
        return (
            f"<div><b>{html.escape(self.title)}</b> <progress value='{self.finished}' max='{max(1, self.total)}'>"
            f"</progress> {self.finished}/{self.total}: {html.escape(self.facts)}</div>"
            f"<div style='font-family: monospace; white-space: pre; padding-left: 1em'>{lines}</div>"
        )


class SweepDisplay:
    """Draws trials into one display of the cell that began the sweep, or went on with it."""

    def __init__(self, title: str, trials: TrialList, metrics: Sequence[str]) -> None:
        self._title, self._trials, self._metrics = title, trials, metrics
        self._display = LiveDisplay(f"sweep-{secrets.token_hex(4)}")
        self._started, self._had = time.monotonic(), trials.ended

    def draw(self, *, planned: int, note: str = "", last: bool = False) -> None:
        """Draw if that is due; ``planned`` is how many trials there will be."""
        if not last and not self._display.is_due():
            return
        picture = describe(
            self._title,
            self._trials,
            max(planned, len(self._trials)),
            seconds=time.monotonic() - self._started,
            had=self._had,
            metrics=self._metrics,
            note=note,
        )
        self._display.draw({"text/plain": picture.text(), "text/html": picture.html()}, last=last)


def describe(
    title: str,
    trials: TrialList,
    planned: int,
    *,
    seconds: float,
    had: int = 0,
    metrics: Sequence[str] = (),
    note: str = "",
) -> Picture:
    """Progress, time left, the best trial, the devices at work, and failures with equal errors folded.

    ``seconds`` is how long this run takes, and ``had`` how many trials were finished before it.
    """
    counts, finished = trials.counts, trials.ended
    facts = [", ".join(f"{counts[state]} {state.lower()}" for state in TrialState if counts[state])]
    if had:
        facts.append(f"{had} from before")
    facts.append(duration(seconds))
    if (left := seconds_left(trials, planned, seconds=seconds, had=had)) is not None:
        facts.append(f"about {duration(left)} left")
    metric = metrics[0] if metrics else None
    lines = note.splitlines()[:1]
    if len(metrics) < 2 and (best := trials.best):
        lines.append(f"best: trial {best.index}, {value_text(best, metric)} with {brief(best.config)}")
    running = sorted(list(trials.running), key=lambda index: trials[index].device)
    lines += [_running(trials[index], metric) for index in running[:DEVICE_LINES]]
    lines += [f"and {len(running) - DEVICE_LINES} more running"] * (len(running) > DEVICE_LINES)
    errors = reasons(trials)
    lines += errors[:ERROR_LINES]
    lines += [f"and {len(errors) - ERROR_LINES} more kinds of error"] * (len(errors) > ERROR_LINES)
    return Picture(title, finished, planned, "; ".join(filter(None, facts)), tuple(lines))


def spark(numbers: Sequence[float]) -> str:
    """A curve in one line of block characters, from its least to its greatest value; NaN and infinity are gaps."""
    points = [number for number in numbers if math.isfinite(number)]
    if not points:
        return ""
    low, width = min(points), (max(points) - min(points)) or 1.0
    step = max(1, -(-len(numbers) // SPARK_CHARACTERS))
    return "".join(
        SPARKS[round((number - low) / width * (len(SPARKS) - 1))] if math.isfinite(number) else " "
        for number in numbers[::step]
    )


def duration(seconds: float) -> str:
    """``"8.4 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _running(trial: Trial, metric: str | None) -> str:
    text = f"{trial.device}: trial {trial.index}"
    name = metric or next((name for report in trial.reports[:1] for name in report.metrics), None)
    curve = [report.metrics[name] for report in trial.reports if name in report.metrics]
    return f"{text}  {spark(curve)} {name}={curve[-1]:.4g} at step {trial.reports[-1].step}" if curve else text
