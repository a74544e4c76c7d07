"""``python -m tests.benchmarks [--write] [name …]``: one table of all figures; exits 1 where a row falls short.

With ``--write`` the whole table goes into docs/measurements.md, and what was compared with peers into README.md.
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
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.conditions import machine, versions
from tests.benchmarks.table import Row, markdown

ROOT = Path(__file__).parents[2]
NAMES = ("architectures", "ledger", "quantised", "start", "cells", "faults", "sweeps", "models")
KEPT = ROOT / "build" / "benchmarks.json"
BLOCK = re.compile(r"(<!-- benchmarks -->\n).*(<!-- end of benchmarks -->)", re.DOTALL)


def main() -> int:
    """Run the named scripts, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[], help="which scripts (default: all)")
    parser.add_argument("--write", action="store_true", help="write the tables of docs and README")
    arguments = parser.parse_args()
    if arguments.names and arguments.write:
        parser.error("--write replaces the whole table: it goes with all scripts, so name none")
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
        try:
            for row in importlib.import_module(f"tests.benchmarks.{name}").measure():
                print(" | ".join(filter(None, row.columns)), file=sys.stderr, flush=True)
                yield row
        except Exception as error:  # the other scripts can still say what they have to
            traceback.print_exc()
            said = " ".join(repr(error).split())[:200]
            yield Row(f"{name}: the rest of it", f"failed: {said}", must="done", met=False)
        print(f"-- {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def write(rows: Sequence[Row]) -> None:
    """All rows into the documentation, those with peers into the README."""
    head = f"Measured on {datetime.date.today().isoformat()}: {machine()}."
    tail = f"Versions: {versions()}."
    compared = [row for row in rows if row.peers]
    _put(ROOT / "docs" / "measurements.md", head, markdown(rows), tail)
    _put(ROOT / "README.md", head, markdown(compared, ("ratio", "what", "kalavai_nb", "peers")))


def _put(page: Path, *paragraphs: str) -> None:
    """Between the marks of the page."""
    block = "\n" + "\n\n".join(paragraphs) + "\n\n"
    page.write_text(BLOCK.sub(lambda found: found[1] + block + found[2], page.read_text()))


if __name__ == "__main__":
    sys.exit(main())
