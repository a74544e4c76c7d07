"""``kalavai-nb limits``: what is lent of this machine, seen and changed while it is lent."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from kalavai_nb.commands.known import find_pool
from kalavai_nb.commands.options import add_json, add_limits, limit_changes
from kalavai_nb.lending.choice import chosen_devices
from kalavai_nb.lending.kept import Lends
from kalavai_nb.lending.local_socket import NotRunning
from kalavai_nb.lending.owner import check_they_can_be_kept

NAME = "limits"
HELP = "see or change what is lent of this machine"
_EPILOG = """\
examples:
  kalavai-nb limits                              as they are
  kalavai-nb limits --memory 50% --max-power 200
  kalavai-nb limits lab --hours none             no limit there any more

They hold from the same second on. What runs over a limit that gets narrower ends with a reason; devices that are taken
back are so within --grace."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("pool", nargs="?", help="which pool, where this machine has joined several")
    add_limits(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print them, changed or not."""
    known = find_pool(options.pool, "joined", NAME)
    changes = limit_changes(options)
    try:
        answer: dict[str, Any] = known.ask(NAME, changes=changes)
        when = ""
    except NotRunning:
        kept = Lends.load(known.directory)
        limits = kept.limits.updated(changes)
        check_they_can_be_kept(limits, chosen_devices(kept.devices, limits))
        if changes:
            replace(kept, limits=limits).save(known.directory)
        answer = {"limits": limits.to_fields(), "limits_text": limits.describe()}
        when = " (it is not lent now; so from the next time on)"
    if options.json:
        print(json.dumps({"pool": known.name, **answer}))
        return 0
    fields = answer["limits"]
    gpus = f"GPUs {fields['gpus']}" if fields["gpus"] else "all devices"
    print(f"lent to {known.name}: {'; '.join(filter(None, (gpus, answer['limits_text'])))}{when}")
    print(f"when taken back, what runs there may go on for {fields['grace']:g} s")
    return 0
