"""``python -m tests.fuzz [--inputs N] [--seed S] [surface …]``: each surface in a process of its own.

Exits 1 where an input did what none may do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

from .running import report
from .surfaces import SURFACES, measure

REPORT = Path("build/fuzz.json")


def main() -> int:
    """Run the named surfaces, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each surface")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="surfaces at once")
    parser.add_argument("surfaces", nargs="*", help=", ".join(SURFACES))
    options = parser.parse_args()
    names = options.surfaces or list(SURFACES)
    if unknown := [name for name in names if name not in SURFACES]:
        parser.error(f"there is no surface {unknown[0]!r}; there is: {', '.join(SURFACES)}")
    outcomes = []
    with multiprocessing.get_context("spawn").Pool(min(options.jobs, len(names)), maxtasksperchild=1) as processes:
        asked = [processes.apply_async(measure, (name, options.inputs, options.seed)) for name in names]
        for each in asked:
            outcomes.append(each.get())
            print(outcomes[-1].line(), flush=True)
    report(outcomes, REPORT)
    failed = sum(outcome.failed for outcome in outcomes)
    total = sum(outcome.inputs for outcome in outcomes)
    print(f"{total} inputs, {failed} failures, seed {options.seed}; report: {REPORT}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
