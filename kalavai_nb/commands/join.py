"""``kalavai-nb join``: lend this machine to a pool."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kalavai_nb.commands.background import LOG, detach
from kalavai_nb.commands.known import (
    Known,
    check_not_lent_by_host,
    check_running,
    find_pool,
    fitting_pools,
    looks_like_invite,
)
from kalavai_nb.commands.options import add_background, add_json, add_limits, limit_changes
from kalavai_nb.errors import InviteError, OptionError
from kalavai_nb.invites import Invite
from kalavai_nb.lending.choice import chosen_devices
from kalavai_nb.lending.kept import Lends
from kalavai_nb.lending.limits import Limits
from kalavai_nb.lending.owner import check_they_can_be_kept
from kalavai_nb.lending.service import Service
from kalavai_nb.lending.voice import Voice

if TYPE_CHECKING:
    from kalavai_nb.link.membership import Membership

NAME = "join"
HELP = "lend this machine to a pool"
_EPILOG = """\
examples:
  kalavai-nb join kalavai://AQ…                  with an invite; what to lend is asked nowhere else than here
  kalavai-nb join                                asks for the invite, which others of this machine then cannot see
  kalavai-nb join - <invite.txt                  reads it
  kalavai-nb join lab                            again, to a pool that this machine has joined before
  kalavai-nb join lab --hours 22:00-08:00 --memory 80% --max-power 250
  kalavai-nb join lab --install-service          at each start of this machine, with no terminal open

The machine needs no open port: one connection goes out to the pool. It comes back by itself after sleep or a lost
network. Ctrl-C takes the machine back, and what runs may end within --grace; a second Ctrl-C takes it back at once.
Whoever is in the pool can run programs on this machine as you: join pools of people you trust."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "pool",
        metavar="INVITE|POOL|-",
        nargs="?",
        help="kalavai://…, or the name of a pool joined before; - or nothing: asks for it, so that no list of "
        "processes shows it",
    )
    parser.add_argument("--devices", type=int, metavar="N", help="lend the first N (all GPUs, or 4 CPU stand-ins)")
    add_limits(parser)
    parser.add_argument("--name", metavar="LABEL", help="what this machine is called in the pool's list (its own name)")
    parser.add_argument(
        "--outbound-only",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="listen on no port at all, also where others could dial this machine directly",
    )
    parser.add_argument("--install-service", action="store_true", help="a systemd unit of this user that does it")
    add_background(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Lend the machine until its owner, or the pool, has enough."""
    if options.detach and options.install_service:
        raise OptionError("--detach and --install-service both put it into the background: give one of them.")
    changes = limit_changes(options)
    # what cannot be meant must not use an invite up
    asked = Limits.parse(changes)
    check_they_can_be_kept(asked, chosen_devices(options.devices, asked))
    options.pool = _said(options.pool)
    voice = Voice(options.json, options.ready_file)
    membership = _membership(options, voice)
    known = Known(membership.pool, "joined", membership.directory, membership.pool_id, membership)
    check_running(known)
    lends = _lends(options, known, changes)
    if options.install_service:
        return _install(options, known, lends)
    if options.detach:
        return _detach(options, known)
    from kalavai_nb.lending.agent import Agent

    devices = chosen_devices(lends.devices, lends.limits)
    said = f"; limits: {lends.limits.describe()}" if lends.limits.describe() else ""
    voice.say(f"lending {len(devices)} device{'s' * (len(devices) != 1)} to {membership.pool}{said}", "starting")
    voice.stamp()

    async def lend() -> None:
        await Agent(membership, devices, lends.limits, voice, outbound_only=lends.outbound_only).run()

    asyncio.run(lend())
    return 0


def _said(pool: str | None) -> str:
    """The invite or the name; asked for where it is not among the words, which a list of processes shows to all."""
    if pool not in (None, "-"):
        return str(pool)
    said = ""
    if sys.stdin.isatty():
        # Ctrl-D is no answer
        with contextlib.suppress(EOFError):
            said = getpass.getpass("invite (it is not shown): ")
    elif pool == "-":
        said = sys.stdin.readline()
    else:
        raise OptionError(
            "wanted an invite or the name of a pool joined before, got neither: kalavai-nb join INVITE, or "
            "kalavai-nb join - with the invite on standard input."
        )
    if not said.strip():
        raise OptionError("wanted an invite on standard input, got nothing: kalavai-nb invite --role worker makes one.")
    return said.strip()


def _membership(options: argparse.Namespace, voice: Voice) -> Membership:
    if not looks_like_invite(options.pool):
        found, *others = fitting_pools(options.pool, "joined") or [find_pool(options.pool, "joined", NAME)]
        assert found.membership
        check_not_lent_by_host(found.membership.gate)
        if others and not _prints_one_object(options):
            voice.say(_which(found, others), "which")
        return found.membership
    invite = Invite.decode(options.pool)
    if invite.role != "worker":
        raise InviteError(
            f'this invite is for using {invite.pool}, from a notebook: kn.Pool("kalavai://…"). To lend this machine, '
            "ask for one that kalavai-nb invite --role worker makes."
        )
    check_not_lent_by_host(invite.gate)
    from kalavai_nb.link.enrol import enrol

    if not _prints_one_object(options):
        voice.say(f"asking the gate of {invite.pool}", "asking")
    label = " ".join((options.name or socket.gethostname()).split())
    if not label:
        raise OptionError("--name is empty: wanted what this machine is to be called.")
    return asyncio.run(enrol(invite, label))


def _prints_one_object(options: argparse.Namespace) -> bool:
    return bool(options.json and (options.detach or options.install_service))


def _which(found: Known, others: Sequence[Known]) -> str:
    """A pool that was taken away and made anew has its old name: the dead one must not stand in the way."""
    ids = " or ".join(other.id for other in others)
    return (
        f"{1 + len(others)} pools called {found.name} are known here; this is the one used last, {found.id}. If you "
        f"mean another: kalavai-nb join {ids}. One that is no more: kalavai-nb leave {others[0].id} --forget."
    )


def _lends(options: argparse.Namespace, known: Known, changes: dict[str, Any]) -> Lends:
    """What was kept, with what was given now; kept for the next time."""
    kept = Lends.load(known.directory)
    lends = replace(
        kept,
        limits=kept.limits.updated(changes),
        devices=kept.devices if options.devices is None else options.devices,
        outbound_only=kept.outbound_only if options.outbound_only is None else options.outbound_only,
    )
    check_they_can_be_kept(lends.limits, chosen_devices(lends.devices, lends.limits))
    lends.save(known.directory)
    return lends


def _install(options: argparse.Namespace, known: Known, lends: Lends) -> int:
    service = Service(known.name, (NAME, known.id), lends.limits.grace_seconds)
    said = service.install()
    if options.json:
        print(json.dumps({"pool": known.name, "pool_id": known.id, "unit": str(service.path), "said": said}))
    else:
        print("\n".join(said))
    return 0


def _detach(options: argparse.Namespace, known: Known) -> int:
    ready: dict[str, Any] = {}

    def say(said: dict[str, Any]) -> None:
        ready.update(said)
        if not options.json:
            print(said["text"], flush=True)

    log = known.directory / LOG
    pid = detach((NAME, known.id), log, say)
    if options.json:
        print(json.dumps({**ready, "pid": pid, "log": str(log)}))
    else:
        print(f"in the background, process {pid}; kalavai-nb leave {known.name} ends it; its log: {log}")
    return 0
