"""``kalavai-nb list``: the pools that are known on this machine."""

from __future__ import annotations

import argparse
import json

from kalavai_nb.commands.known import Known, known_pools
from kalavai_nb.commands.options import add_json
from kalavai_nb.grid import grid_text

NAME = "list"
HELP = "the pools that are known on this machine"
_PARTS = {"hosted": "kept here", "joined": "this machine is lent to it", "used": "used from notebooks"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print them."""
    pools = known_pools()
    running = {id(known): known.is_running for known in pools}
    if options.json:
        rows = [
            {"pool": known.name, "part": known.part, "pool_id": known.id, "running": running[id(known)]}
            for known in pools
        ]
        print(json.dumps(rows))
    elif pools:
        print(grid_text(("pool", "what", "state"), [_row(known, running[id(known)]) for known in pools]))
    else:
        print("no pool is known on this machine: kalavai-nb start makes one, kalavai-nb join INVITE lends it to one")
    return 0


def _row(known: Known, is_running: bool) -> tuple[str, str, str]:
    if known.part == "used":
        state = f'kn.Pool("{known.name}") connects to it'
    elif is_running:
        state = "runs" if known.part == "hosted" else "lent"
    else:
        verb = "start" if known.part == "hosted" else "join"
        state = f"{'does not run' if verb == 'start' else 'not now'}: kalavai-nb {verb} {known.name}"
    return known.name, _PARTS.get(known.part, known.part), state
