"""A surface under so many inputs: what came of them, how fast, how much memory; failures are kept to be had again."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .mutation import Mutator

# an input that takes longer, twice, is a hang
HANG_SECONDS = 2.0
# the process ends, with the stacks of its threads, where one input holds up this many seconds
DEAD_SECONDS = 120.0
MOST_GROWTH_BYTES = 96 << 20
# each another exception at another place
KEPT_FAILURES = 20
BLOCK = 1000


class Surface(Protocol):
    """Something that takes what strangers write."""

    name: str

    def make(self, mutator: Mutator) -> Any:
        """The next input."""

    def take(self, given: Any) -> str:
        """What became of it, in a word. Raises what must not happen."""


# a surface, for as long as it is needed
Opened = Callable[[], contextlib.AbstractContextManager[Surface]]


@dataclass(frozen=True)
class Failure:
    """An input that did what none may do; ``number`` of those that come of ``seed``."""

    surface: str
    seed: int
    number: int
    what: str
    where: str
    given: str


@dataclass
class Outcome:
    """All of one surface."""

    surface: str
    inputs: int = 0
    seconds: float = 0.0
    words: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    growth_bytes: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)

    def line(self) -> str:
        """One row for people."""
        words = ", ".join(f"{count} {word}" for word, count in self.words.most_common())
        rate = self.inputs / max(self.seconds, 1e-9)
        return (
            f"{self.surface:<12} {self.inputs:>9} inputs {self.seconds:7.1f} s {rate:9.0f}/s   "
            f"slowest {self.slowest_seconds * 1e3:6.1f} ms   memory +{self.growth_bytes >> 20} MiB   "
            f"{self.failed} failures ({words})"
        )


def run(opened: Opened, inputs: int, seed: int) -> Outcome:
    """Give a surface so many inputs."""
    mutator = Mutator(seed)
    with opened() as surface, _alive() as still:
        outcome = Outcome(surface.name)
        # what is loaded and cached by the first inputs is no leak
        for _ in range(min(100, inputs)):
            with contextlib.suppress(Exception):
                surface.take(surface.make(Mutator(seed + 1)))
        at_rest = _peak_from_now()
        began = time.perf_counter()
        for number in range(inputs):
            if number % BLOCK == 0:
                still()
            given = surface.make(mutator)
            _one(surface, given, outcome, seed, number)
        outcome.seconds = time.perf_counter() - began
        outcome.growth_bytes = max(0, _peak() - at_rest)
        if outcome.growth_bytes > MOST_GROWTH_BYTES:
            _fail(outcome, Failure(surface.name, seed, inputs, f"memory grew by {outcome.growth_bytes} bytes", "", ""))
    return outcome


def _one(surface: Surface, given: Any, outcome: Outcome, seed: int, number: int) -> None:
    outcome.inputs += 1
    began = time.perf_counter()
    try:
        outcome.words[surface.take(given)] += 1
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        _fail(
            outcome, Failure(surface.name, seed, number, f"{type(error).__name__}: {error}"[:500], where, repr(given))
        )
    took = time.perf_counter() - began
    if took > HANG_SECONDS:
        # once may be the machine's fault
        began = time.perf_counter()
        with contextlib.suppress(Exception):
            surface.take(given)
        took = min(took, time.perf_counter() - began)
        if took > HANG_SECONDS:
            _fail(outcome, Failure(surface.name, seed, number, f"took {took:.1f} s", "", repr(given)))
    outcome.slowest_seconds = max(outcome.slowest_seconds, took)


def _fail(outcome: Outcome, failure: Failure) -> None:
    outcome.failed += 1
    known = {(each.what.partition(":")[0], each.where) for each in outcome.failures}
    if (failure.what.partition(":")[0], failure.where) not in known and len(outcome.failures) < KEPT_FAILURES:
        outcome.failures.append(failure)


def report(outcomes: list[Outcome], path: Path) -> None:
    """Write what failed, with the input, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [asdict(failure) for outcome in outcomes for failure in outcome.failures]
    path.write_text(json.dumps(kept, indent=1))


@contextlib.contextmanager
def _alive() -> Iterator[Callable[[], None]]:
    """Says where it hangs, and ends, when it is not told in time that it goes on: also for what holds the GIL."""
    yield lambda: faulthandler.dump_traceback_later(DEAD_SECONDS, exit=True)
    faulthandler.cancel_dump_traceback_later()


def _peak_from_now() -> int:
    """What is held now; what `_peak` says later is the most since."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
