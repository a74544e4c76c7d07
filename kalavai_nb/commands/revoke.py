"""``kalavai-nb revoke``: members and invites of a pool, and their end."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from kalavai_nb.commands.known import Known, find_pool
from kalavai_nb.commands.options import add_json
from kalavai_nb.errors import OptionError
from kalavai_nb.grid import grid_text
from kalavai_nb.hosting.kept import Kept
from kalavai_nb.lending.holders import span
from kalavai_nb.lending.local_socket import NotRunning
from kalavai_nb.members import Members

NAME = "revoke"
HELP = "put a member out of a pool, or take an invite back"
_EPILOG = """\
examples:
  kalavai-nb revoke --list           who is a member, and which invites are out
  kalavai-nb revoke gpu-box          this machine: its connections are closed at once, and it does not come back
  kalavai-nb revoke i-1f2e3d4c       this invite, and all who came by it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("who", nargs="?", help="the name or id of a member, or the id of an invite")
    parser.add_argument("--list", action="store_true", help="print who is a member, and which invites are out")
    parser.add_argument("--pool", help="which pool, where several are kept on this machine")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Revoke, or list."""
    if options.list == bool(options.who):
        raise OptionError("say whom to revoke, or --list to see who is there.")
    known = find_pool(options.pool, "hosted", f"{NAME} --pool")
    if options.list:
        listed = _listed(known)
        print(json.dumps(listed) if options.json else _text(known, listed))
        return 0
    gone = _revoke(known, options.who)
    if options.json:
        print(json.dumps({"revoked": gone}))
    else:
        names = ", ".join(f"{member['label']} ({member['id']})" for member in gone)
        print(f"revoked {options.who}: {f'{names} is welcome no more' if names else 'nobody had come by it'}")
    return 0


def _revoke(known: Known, who: str) -> list[dict[str, Any]]:
    try:
        return list(known.ask(NAME, who=who)["revoked"])
    except NotRunning:
        # it is enough to write it down: the pool reads it when it starts
        return [_shown(member) for member in Kept.open(known.name)[0].members.revoke(who)]


def _listed(known: Known) -> dict[str, Any]:
    try:
        return known.ask("members")
    except NotRunning:
        members: Members = Kept.open(known.name)[0].members
        return {
            "members": [{**_shown(member), "connected": 0} for member in members.members],
            "invites": [_shown(invitation) for invitation in members.invitations],
            "time": time.time(),
        }


def _shown(noun: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(noun).items() if name != "key"}


def _text(known: Known, listed: dict[str, Any]) -> str:
    now = float(listed["time"])
    members = [
        (each["label"], each["id"], each["role"], f"{span(now - each['since'])} ago", _member_state(each, now))
        for each in listed["members"]
    ]
    invites = [
        (each["id"], each["role"], f"{each['used']} of {each['uses']}", _invite_state(each, now))
        for each in listed["invites"]
        if each["expires"] > now and not each["revoked"] and each["used"] < each["uses"]
    ]
    parts = [f"members of {known.name}:"]
    parts.append(grid_text(("name", "id", "role", "since", "state"), members) if members else "nobody yet")
    parts.append("\ninvites that can be used:")
    parts.append(grid_text(("id", "role", "used", "state"), invites) if invites else "none")
    return "\n".join(parts)


def _member_state(member: dict[str, Any], now: float) -> str:
    if member["revoked"]:
        return "revoked"
    if member["until"] and member["until"] < now:
        return "its time is over"
    state = "connected" if member["connected"] else "not connected"
    return f"{state}, for {span(member['until'] - now)} more" if member["until"] else state


def _invite_state(invite: dict[str, Any], now: float) -> str:
    return f"for {span(invite['expires'] - now)} more"
