"""How a trial ended, as its worker reported it, and the error that stands for that."""

from __future__ import annotations

from typing import Any

from kalavai_nb.errors import RemoteError, TrialError, TrialTimeout
from kalavai_nb.failure import last_words, original_error

# {"status": "ok" or "error", "died", "timeout", "stopped", "lost", "left", …}: see worker/trial.py and worker/runner.py
End = dict[str, Any]


def error_of(end: End) -> BaseException:
    """The error of a trial that did not end well: its own where it can be built here, else a TrialError."""
    match end["status"]:
        case "timeout":
            return TrialTimeout(f"it ran longer than timeout={end['seconds']:g} s and was ended")
        case "lost":
            return TrialError(end["how"])
        case "died":
            why = " because the machine ran out of memory" if end.get("out_of_memory") else ""
            said = last_words(end.get("log", ""))
            return TrialError(f"its process {end['how']}{why}." + (f" It wrote last:\n{said}" if said else ""))
    error = original_error(end)
    return TrialError(str(error)) if isinstance(error, RemoteError) else error


def worth_keeping(end: End) -> End:
    """What of an end the journal needs to build its error again."""
    names = ("status", "ename", "evalue", "traceback", "error", "how", "out_of_memory", "seconds")
    kept = {name: end[name] for name in names if name in end}
    return {**kept, "log": last_words(end.get("log", ""))} if end["status"] == "died" else kept
