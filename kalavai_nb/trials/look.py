"""A sweep in the picture of the whole pool, for all who look at it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence

from kalavai_nb.snapshot import SweepState
from kalavai_nb.state import TrialState, brief
from kalavai_nb.trials.dispatch import Dispatch
from kalavai_nb.trials.progress import reasons, seconds_left, value_text
from kalavai_nb.trials.trial_list import TrialList

# how long one that is over stays in the picture
SHOWN_SECONDS = 600.0
LONGEST = 200
# a name may be long, and its id goes through files and addresses
LONGEST_ID = 40


def look(
    name: str, fn: str, metrics: Sequence[str], trials: TrialList, planned: int, dispatch: Dispatch
) -> SweepState | None:
    """How far it is; None where it is long over. ``planned`` is how many trials a search will have."""
    now, total = time.time(), max(planned, len(trials))
    if now - (dispatch.ended_at or now) > SHOWN_SECONDS:
        return None
    owner, state = dispatch.engine.owner, _state(dispatch, trials)
    best = trials.best if len(metrics) < 2 else None
    metric = metrics[0] if metrics else None
    left = seconds_left(trials, total, seconds=now - dispatch.began_at, had=dispatch.had)
    return SweepState(
        f"{owner}/{zlib.crc32(name.encode()):08x}/{name[:LONGEST_ID]}",
        owner,
        name[:LONGEST],
        fn,
        state,
        {str(each): trials.counts[each] for each in TrialState if trials.counts[each]},
        total,
        dispatch.began_at,
        f"{value_text(best, metric)} with {brief(best.config)}"[:LONGEST] if best else "",
        left if state == "running" else None,
        "; ".join(reasons(trials)[:1])[:LONGEST],
    )


def _state(dispatch: Dispatch, trials: TrialList) -> str:
    if not dispatch.is_over:
        return "running"
    if dispatch.error:
        return "cut off"
    return "stopped" if trials.counts[TrialState.STOPPED] else "ended"
