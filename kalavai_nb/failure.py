"""From the ends of a cell's ranks to the one exception that the notebook sees."""

from __future__ import annotations

import base64
import contextlib
import pickle
from dataclasses import dataclass
from typing import Any

from kalavai_nb.errors import RankDied, RemoteError
from kalavai_nb.outputs import rank_range

LAST_LINES = 12


@dataclass(frozen=True)
class Failure:
    """How one rank failed: its end as the worker reported it, where it was, and the names that went with it."""

    rank: int
    where: str
    end: dict[str, Any]
    lost: tuple[str, ...] = ()

    @property
    def died(self) -> bool:
        return bool(self.end["status"] == "died")

    @property
    def was_stopped(self) -> bool:
        """Whether it failed only because it was told to stop."""
        return bool(self.end.get("ename") == "KeyboardInterrupt" or self.end.get("killed_because"))

    def sentence(self) -> str:
        """What happened to this rank."""
        if not self.died:
            return f"rank {self.rank} ({self.where}) raised {self.end['ename']}: {self.end['evalue']}"
        parts = [f"rank {self.rank} ({self.where}) {self.end['how']}"]
        if self.end.get("killed_because"):
            parts.append(f"since {self.end['killed_because']}")
        if self.end.get("out_of_memory"):
            parts.append("because the machine ran out of memory")
        text = " ".join(parts) + ". "
        text += f"Lost with it: {', '.join(self.lost)}. " if self.lost else "It held no names. "
        return text + "The next cell gets a new rank in its place."


def exception_of(failures: list[Failure]) -> BaseException:
    """The exception to raise for these failures, in order of time: the first rank's own, with all of them shown."""
    causes = [failure for failure in failures if not failure.was_stopped] or failures
    first = causes[0]
    error = _died(first) if first.died else original_error(first.end)
    return with_traceback(error, [line for line in _traceback_lines(causes)] + _others(failures, causes))


def with_traceback(error: BaseException, lines: list[str]) -> BaseException:
    """The same exception, shown by IPython with these lines, and by plain Python with a note."""
    with contextlib.suppress(AttributeError, TypeError):
        error.add_note("\n".join(lines))
        vars(error)["_render_traceback_"] = lambda: lines
        return error
    replacement = RemoteError(f"{type(error).__name__}: {error}")
    vars(replacement)["_render_traceback_"] = lambda: lines
    return replacement


def interrupted(stop: KeyboardInterrupt, sentence: str) -> BaseException:
    """The same, shown with a sentence of what became of what was waited for, without the frames that waited."""
    return with_traceback(stop, [f"KeyboardInterrupt: {sentence}"])


def original_error(end: dict[str, Any]) -> BaseException:
    """The exception object that was raised in the rank; a RemoteError where it cannot be had."""
    pickled = (end.get("kalavai") or {}).get("error") or end.get("error")
    if pickled:
        # whatever goes wrong while somebody's class is rebuilt, the text of the error is still there
        with contextlib.suppress(Exception):
            error = pickle.loads(base64.b64decode(pickled))
            if isinstance(error, BaseException):
                return error
    return RemoteError(f"{end['ename']}: {end['evalue']}")


def _died(failure: Failure) -> RankDied:
    words = last_words(failure.end.get("tail", ""))
    return RankDied(failure.sentence() + (f"\nIt wrote last:\n{words}" if words else ""))


def last_words(tail: str) -> str:
    """The end of a log; of a crash in C code, its beginning and the stack of the thread that crashed."""
    _, crash, report = tail.rpartition("Fatal Python error: ")
    if not crash:
        return "\n".join(tail.strip().splitlines()[-LAST_LINES:])
    head, _, stack = report.partition("\n")
    current = stack[max(0, stack.find("Current thread")) :].split("\n\n")[0]
    return "\n".join([crash + head, *current.splitlines()[: LAST_LINES - 1]])


def _traceback_lines(causes: list[Failure]) -> list[str]:
    """The tracebacks, equal ones once."""
    groups: dict[str, list[Failure]] = {}
    for failure in causes:
        text = str(_died(failure)) if failure.died else "\n".join(failure.end["traceback"])
        groups.setdefault(text, []).append(failure)
    lines: list[str] = []
    for text, group in groups.items():
        ranks = rank_range(failure.rank for failure in group)
        where = ", ".join(dict.fromkeys(failure.where for failure in group))
        title = f"rank{'s' * (len(group) > 1)} {ranks} ({where})"
        lines += [f"\x1b[1m{title}\x1b[0m", *(f"RankDied: {text}" if group[0].died else text).split("\n"), ""]
    return lines


def _others(failures: list[Failure], causes: list[Failure]) -> list[str]:
    stopped = [failure for failure in failures if failure not in causes]
    lines = [failure.sentence() for failure in stopped if failure.died]
    interrupted = [failure.rank for failure in stopped if not failure.died]
    if interrupted:
        lines.append(f"rank{'s' * (len(interrupted) > 1)} {rank_range(interrupted)} had to be stopped.")
    return lines
