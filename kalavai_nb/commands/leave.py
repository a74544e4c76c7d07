"""``kalavai-nb leave``: take this machine back."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil

from kalavai_nb.commands.known import Known, find_pool
from kalavai_nb.commands.options import add_json, speaker
from kalavai_nb.commands.waiting import wait_for_end
from kalavai_nb.errors import KalavaiError
from kalavai_nb.lending.holders import span
from kalavai_nb.lending.local_socket import NotRunning
from kalavai_nb.lending.service import Service

NAME = "leave"
HELP = "take this machine back from a pool"
_EPILOG = """\
examples:
  kalavai-nb leave                   what runs may end first, within the grace that was said (60s)
  kalavai-nb leave lab --now         at once: what runs there is run again elsewhere
  kalavai-nb leave lab --forget      for good: another invite is needed to come back

The same as Ctrl-C where kalavai-nb join was typed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("pool", nargs="?", help="which pool, where this machine is lent to several")
    parser.add_argument("--now", action="store_true", help="do not wait for what runs")
    parser.add_argument("--forget", action="store_true", help="be no member any more, and remove its service")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Ask the agent to end, and wait until it has."""
    known = find_pool(options.pool, "joined", NAME)
    say = speaker(options)
    try:
        answer = known.ask(NAME, now=options.now, forget=options.forget)
        was_lent = True
        for line in answer["running"]:
            say(line)
        if answer["running"] and not options.now:
            say(f"what runs may end within {span(answer['grace_seconds'])}; kalavai-nb leave again, --now, ends it now")
        wait_for_end(int(answer["pid"]))
    except NotRunning:
        if not options.forget:
            raise
        was_lent = False
        _tell_gate(known)
    removed = Service(known.name).remove() if options.forget else []
    if options.forget:
        shutil.rmtree(known.directory, ignore_errors=True)
    if options.json:
        print(json.dumps({"pool": known.name, "was_lent": was_lent, "forgotten": options.forget}))
        return 0
    for line in removed:
        say(line)
    say(_end(known, options.forget))
    return 0


def _end(known: Known, is_forgotten: bool) -> str:
    if is_forgotten:
        return f"this machine is no member of {known.name} any more"
    again = f"kalavai-nb join {known.name} lends it again"
    if Service(known.name).path.exists():
        again += ", and so does its service at the next login (leave --forget removes it)"
    return f"this machine is lent to {known.name} no more; {again}"


def _tell_gate(known: Known) -> None:
    """The pool need not keep what nobody has any more; where it does not answer, that is no matter."""
    from kalavai_nb.gate.keys import ssh_key
    from kalavai_nb.link.dial import ask, dial, hang_up

    member = known.membership
    assert member

    async def tell() -> None:
        connection, _ = await dial(member.addresses, member.gate, member.member, ssh_key(member.identity.key))
        try:
            await ask(connection, "forget")
        finally:
            await hang_up(connection)

    with contextlib.suppress(KalavaiError):
        asyncio.run(tell())
