"""``kalavai-nb stop``: end a pool that runs on this machine."""

from __future__ import annotations

import argparse
import json
import shutil

from kalavai_nb.commands.known import find_pool
from kalavai_nb.commands.options import add_json, speaker
from kalavai_nb.commands.waiting import wait_for_end
from kalavai_nb.lending.holders import span
from kalavai_nb.lending.local_socket import NotRunning

NAME = "stop"
HELP = "end a pool that runs on this machine"
_EPILOG = """\
examples:
  kalavai-nb stop                    what runs may end first, within the grace that start was told (60s)
  kalavai-nb stop lab --now          at once
  kalavai-nb stop lab --forget       and take its files away: nobody is a member any more

Without --forget, kalavai-nb start brings the same pool back, and its members come by themselves. The same as Ctrl-C
where kalavai-nb start was typed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("pool", nargs="?", help="which pool, where several are kept on this machine")
    parser.add_argument("--now", action="store_true", help="do not wait for what runs")
    parser.add_argument("--forget", action="store_true", help="take its authority and its members away, too")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Ask it to end, and wait until it has."""
    known = find_pool(options.pool, "hosted", NAME)
    say = speaker(options)
    was_running = True
    try:
        answer = known.ask("leave", now=options.now)
        for line in answer["running"]:
            say(line)
        if answer["running"] and not options.now:
            say(f"what runs may end within {span(answer['grace_seconds'])}; kalavai-nb stop again, --now, ends it now")
        wait_for_end(int(answer["pid"]))
    except NotRunning:
        if not options.forget:
            raise
        was_running = False
    if options.forget:
        shutil.rmtree(known.directory, ignore_errors=True)
    if options.json:
        print(json.dumps({"pool": known.name, "was_running": was_running, "forgotten": options.forget}))
    elif options.forget:
        say(f"the pool {known.name} is gone, with its authority and its members")
    else:
        say(f"the pool {known.name} has ended; kalavai-nb start {known.name} brings it back")
    return 0
