"""``python -m tests.benchmarks [--write] [name …]``: one table of all figures; exits 1 where a row falls short.

With ``--write`` the whole table goes to docs/benchmarks.md, and what has a ratio to a peer into README.md as well.
Rows are kept in build/benchmarks.json as they come, so that a run that is cut off has lost none.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.conditions import machine, versions
from tests.benchmarks.table import LESS, MORE, Row, markdown

ROOT = Path(__file__).parents[2]
NAMES = ("start", "cells", "faults", "sweeps", "models", "quantised", "architectures", "ledger")
KEPT = ROOT / "build" / "benchmarks.json"
PAGE = """# Measurements

`make bench` on {date}: {machine}. Two shared cores are noisy, so each figure was taken in turns with its peers', and
what counts is the ratio: ours over the best peer's ({less}: less is better, {more}: more is). What is not met says so.

{table}

Versions: {versions}.
"""
BLOCK = re.compile(r"(<!-- benchmarks -->\n).*(<!-- /benchmarks -->)", re.DOTALL)


def main() -> int:
    """Run the named scripts, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[], help="which scripts (default: all)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and the table of README.md")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for row in _measured(arguments.names or NAMES):
        rows.append(row)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps([dataclasses.asdict(each) for each in rows], indent=1, ensure_ascii=False))
    print(f"{markdown(rows)}\n\n{machine()}\n{versions()}")
    if arguments.write:
        write(rows)
    return int(not all(row.met for row in rows))


def _measured(names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        began = time.monotonic()
        for row in importlib.import_module(f"tests.benchmarks.{name}").measure():
            print(" | ".join(filter(None, row.columns)), file=sys.stderr, flush=True)
            yield row
        print(f"-- {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def write(rows: Sequence[Row]) -> None:
    """The page of all rows, and those with a peer in the README."""
    date = datetime.date.today().isoformat()
    page = PAGE.format(date=date, machine=machine(), less=LESS, more=MORE, table=markdown(rows), versions=versions())
    (ROOT / "docs" / "benchmarks.md").write_text(page)
    readme = ROOT / "README.md"
    table = markdown([row for row in rows if row.peers], ("ratio", "what", "kalavai_nb", "peers"))
    block = f"Measured on {date}: {machine()}.\n\n{table}\n"
    readme.write_text(BLOCK.sub(lambda found: found[1] + block + found[2], readme.read_text()))


if __name__ == "__main__":
    sys.exit(main())
