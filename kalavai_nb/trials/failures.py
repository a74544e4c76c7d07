"""All failures of a sweep in one text, equal ones folded."""

from __future__ import annotations

from collections.abc import Sequence

from kalavai_nb.outputs import rank_range
from kalavai_nb.state import Trial, TrialState
from kalavai_nb.trials.trial_list import reason

MOST_SHOWN = 10


def failures(fn: str, count: int, bad: Sequence[Trial]) -> str:
    """Which trials of ``count`` have no value, and why."""
    groups: dict[str, list[int]] = {}
    for trial in bad:
        groups.setdefault(reason(trial), []).append(trial.index)
    lines = [f"trial{'s' * (len(i) > 1)} {rank_range(i)}: {what}" for what, i in list(groups.items())[:MOST_SHOWN]]
    lines += [f"and {len(groups) - MOST_SHOWN} more kinds of failure"] * (len(groups) > MOST_SHOWN)
    what = f"{len(bad)} of {count} trials of {fn} have no value."
    failed = [trial.index for trial in bad if trial.state is TrialState.FAILED]
    more = f", sweep[{failed[0]}].log what trial {failed[0]} printed" if failed else ""
    return "\n".join([what, *lines, f"sweep.table() has all the others{more}."])
