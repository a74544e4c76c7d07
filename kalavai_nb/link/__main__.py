"""The process that keeps a notebook's link: it dies with the notebook, and not of what the notebook is busy with.

It gets one JSON line on standard input (``invite``, which may be a pool's name, and ``label``), and says what becomes
of the link in JSON lines: ``{"error": …, "kind": …}``, or ``{"state": "up", …}`` with the ports and the membership,
then each change.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from kalavai_nb.errors import InviteError, KalavaiError
from kalavai_nb.invites import SCHEME, Invite
from kalavai_nb.link.connection import Link
from kalavai_nb.link.enrol import enrol, renew
from kalavai_nb.link.membership import Membership, find, memberships

_LONGEST_NAME = 40
_LOOK_SECONDS = 1.0


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def _member(said: str, label: str) -> Membership:
    """Who this notebook is, by an invite, or by the name of a pool that this user has come to before."""
    if said and len(said) <= _LONGEST_NAME and "://" not in said:
        if known := find(pool=said, role="user"):
            return await renew(known)
        there = ", ".join(each.pool for each in memberships() if each.role == "user") or "none"
        raise InviteError(
            f"no pool called {said!r} is known here (there is: {there}). Wanted an invite, {SCHEME}…, which "
            "kalavai-nb invite --role user makes on the machine where the pool was started."
        )
    invite = Invite.decode(said)
    if invite.role != "user":
        raise InviteError(
            f"this invite is for lending a machine: kalavai-nb join {said[:24]}… does that. To use the pool, ask for "
            "one that kalavai-nb invite --role user makes."
        )
    return await enrol(invite, label)


async def _mind(parent: int, lines: asyncio.StreamReader) -> None:
    """A process that the notebook forked may hold the pipe for longer than the notebook lives."""
    while os.getppid() == parent:
        await asyncio.sleep(_LOOK_SECONDS)
    lines.feed_eof()


async def main() -> None:
    """Keep the link until standard input ends, or the notebook."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    minding = asyncio.create_task(_mind(os.getppid(), lines))
    given = json.loads(await lines.readline())
    try:
        link = Link(await _member(given["invite"].strip(), given["label"]))
        await link.open()
    except KalavaiError as error:
        _say(error=str(error), kind=type(error).__name__)
        return

    def on_state(state: str, why: str) -> None:
        renewed = {"identity": asdict(link.membership.identity)} if state == "renewed" else {}
        _say(state=state, why=why, **renewed)

    link.on_state = on_state
    member = link.membership
    ports = {"head": link.head_port, "proxy": link.proxy_port}
    who = {"pool": member.pool, "member": member.member, "may_invite": member.may_invite, "stays": member.stays}
    _say(state="up", identity=asdict(member.identity), **who, **ports)
    while line := await lines.readline():
        # another invite is all that a notebook asks for
        try:
            _say(reply=await link.ask("invite", **json.loads(line)))
        except KalavaiError as error:
            _say(reply={"error": str(error), "kind": type(error).__name__})
    minding.cancel()
    # nobody hears it any more
    link.on_state = lambda state, why: None
    await link.close()


if __name__ == "__main__":
    asyncio.run(main())
