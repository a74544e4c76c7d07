"""``python -m tests.benchmarks [start|cells|faults|sweeps|models|ledger]``: tables; exits 1 where a row falls short."""

from __future__ import annotations

import importlib
import sys

from tests.benchmarks.table import print_table

NAMES = ("start", "cells", "faults", "sweeps", "models", "ledger")


def main() -> int:
    """Run the named scripts, or all."""
    rows = []
    for name in sys.argv[1:] or NAMES:
        for row in importlib.import_module(f"tests.benchmarks.{name}").measure():
            what, ours, *_ = row.entries.values()
            print(f"{what}: {ours}", file=sys.stderr, flush=True)
            rows.append(row)
    print_table(rows)
    return int(not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
