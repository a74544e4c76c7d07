"""``kalavai-nb invite``: one line of text that lets somebody into a pool."""

from __future__ import annotations

import argparse
import json

from kalavai_nb.commands.known import find_pool
from kalavai_nb.commands.options import add_invite, add_json, seconds
from kalavai_nb.lending.holders import span

NAME = "invite"
HELP = "let somebody into a pool that runs on this machine"
_EPILOG = """\
examples:
  kalavai-nb invite                              for one machine that is lent, within 2 hours
  kalavai-nb invite --role user --uses 5         for five notebooks
  kalavai-nb invite lab --expires 1d --stay 7d   whoever comes by it is welcome for a week

Send it like a password: whoever has it can come in, and run programs on every machine of the pool."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("pool", nargs="?", help="which pool, where several are kept on this machine")
    parser.add_argument(
        "--role", default="worker", choices=("user", "worker"), help="worker: lends a machine (as is); user: a notebook"
    )
    add_invite(parser, "how many can come by it (1)")
    parser.add_argument("--stay", metavar="TIME", help="how long they may stay (until they are revoked)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the invite, and what is to be done with it."""
    expires = seconds("--expires", options.expires)
    stay = seconds("--stay", options.stay) if options.stay else 0.0
    known = find_pool(options.pool, "hosted", NAME)
    made = known.ask("invite", role=options.role, seconds=expires, uses=options.uses, stay_seconds=stay)
    if options.json:
        print(json.dumps({**made, "pool": known.name}))
        return 0
    noun = "machine" if options.role == "worker" else "notebook"
    who = f"one {noun}" if options.uses == 1 else f"up to {options.uses} {noun}s"
    what = "To lend a machine" if options.role == "worker" else "In a notebook"
    line = f"kalavai-nb join {made['invite']}" if options.role == "worker" else f'kn.Pool("{made["invite"]}")'
    print(f"{what} ({who}, within {span(expires)}{f'; to stay {span(stay)}' if stay else ''}):\n  {line}")
    print(f"It is {made['id']}: kalavai-nb revoke {made['id']} takes it back, with all who came by it.")
    return 0
