"""``kalavai-nb start``: a pool on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from kalavai_nb.commands.background import LOG, detach
from kalavai_nb.commands.known import Known, check_running
from kalavai_nb.commands.options import add_background, add_invite, add_json, seconds
from kalavai_nb.errors import OptionError
from kalavai_nb.hosting.kept import ANYWHERE, Kept, default_name
from kalavai_nb.hosting.reach import is_only_here, own_addresses, public_addresses, unknown_names
from kalavai_nb.lending.holders import span
from kalavai_nb.lending.voice import Voice

NAME = "start"
HELP = "make a pool on this machine, or bring it up again"
_EPILOG = """\
examples:
  kalavai-nb start                                  a pool of this machine; prints what friends type to join
  kalavai-nb start lab --public lab.example.org     reached from outside under this name
  kalavai-nb start lab --detach                     in the background; kalavai-nb stop lab ends it

A pool that is started again under its name is the same pool: its members come back by themselves. Ctrl-C ends it and
lets what runs on this machine end first; a second Ctrl-C ends it at once.

One port is open to others. From outside of your network, let your router pass it on to this machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", help="what the pool is called (the only one here, or this machine's name)")
    parser.add_argument("--no-devices", action="store_true", help="lend none of this machine's own devices")
    parser.add_argument("--devices", type=int, metavar="N", help="lend the first N (all GPUs, or 4 CPU stand-ins)")
    parser.add_argument("--port", type=int, metavar="P", help="where others reach it (7410, and then as before)")
    parser.add_argument(
        "--public",
        action="append",
        metavar="HOST[:PORT]",
        help="a name or address of this machine that invites say first; may be given several times",
    )
    parser.add_argument("--listen", metavar="HOST", help=f"on this address of this machine only ({ANYWHERE}: all)")
    parser.add_argument("--users-invite", action="store_true", help="let notebooks in the pool invite others")
    parser.add_argument("--grace", default="60s", metavar="TIME", help="how long what runs may go on at its end (60s)")
    add_invite(parser, "how many can use each of the two invites that are printed (1)")
    add_background(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Serve the pool until it is to end."""
    began = time.time()
    grace, expires = seconds("--grace", options.grace), seconds("--expires", options.expires)
    kept, is_new = _kept(options)
    check_running(Known(kept.name, "hosted", kept.directory))
    if options.detach:
        return _detach(options, kept)
    # asyncssh and cryptography are not for those who only wanted --help
    from kalavai_nb.hosting.host import HostedPool
    from kalavai_nb.lending.choice import chosen_devices

    voice = Voice(options.json, options.ready_file)
    devices = [] if options.no_devices else chosen_devices(options.devices)
    voice.say(_beginning(kept, is_new, len(devices)), "starting", pool=kept.name, is_new=is_new)

    async def serve() -> None:
        pool = HostedPool(kept, devices, voice, users_invite=options.users_invite, grace_seconds=grace)
        pool.ending.on_signals()
        try:
            await pool.start()
            for host in await unknown_names(kept.public):
                voice.say(_unknown(host), "note")
            if not pool.ending.asked.is_set():
                invites = {role: pool.gate.invite(role, expires, options.uses) for role in ("worker", "user")}
                facts = _facts(kept, pool.pool_id, time.time() - began, invites)
                voice.is_ready(_ready_text(facts, expires, options.uses), **facts)
                voice.stamp()
                await pool.serve()
        finally:
            await pool.close()

    asyncio.run(serve())
    voice.say(f"the pool {kept.name} has ended; kalavai-nb start {kept.name} brings it back", "ended")
    return 0


def _kept(options: argparse.Namespace) -> tuple[Kept, bool]:
    if options.no_devices and options.devices is not None:
        raise OptionError("--no-devices and --devices cannot both be meant: give one of them.")
    if options.uses < 1:
        raise OptionError(f"--uses {options.uses} cannot be meant: wanted 1 or more.")
    if options.port is not None and not 0 < options.port < 65536:
        raise OptionError(f"--port {options.port} is no port: wanted a number from 1 to 65535.")
    name = options.name or default_name()
    listen, port = options.listen or ANYWHERE, options.port or 1
    # checked before anything is made
    own_addresses(listen, port)
    public_addresses(options.public or (), port)
    kept, is_new = Kept.open(name)
    kept.listen = options.listen or kept.listen
    kept.port = options.port or kept.port
    if options.public is not None:
        kept.public = tuple(text for text in options.public if text.strip())
    return kept, is_new


def _unknown(host: str) -> str:
    return (
        f"--public {host}: no address of this name is found from here at this moment. Invites say it all the same; if "
        "it is misspelt, or will not be known where friends are, start the pool again with another --public."
    )


def _beginning(kept: Kept, is_new: bool, count: int) -> str:
    with_devices = f"its head and {count} device{'s' * (count != 1)} of this machine" if count else "its head"
    members = sum(not member.revoked for member in kept.members.members)
    if is_new or not kept.members.invitations:
        return f"making the pool {kept.name}: starting {with_devices}"
    return f"the pool {kept.name} again, with {members} member{'s' * (members != 1)}: starting {with_devices}"


def _facts(kept: Kept, pool_id: str, took: float, invites: dict[str, Any]) -> dict[str, Any]:
    from kalavai_nb.hosting.reach import invited_addresses

    return {
        "pool": kept.name,
        "pool_id": pool_id,
        "port": kept.port,
        "addresses": invited_addresses(kept.public, kept.listen, kept.port),
        "invites": invites,
        "seconds": round(took, 2),
        "only_here": is_only_here(kept.listen) and not kept.public,
    }


def _ready_text(facts: dict[str, Any], expires: float, uses: int) -> str:
    name, within = facts["pool"], f"within {span(expires)}"
    where = ", ".join(facts["addresses"])
    only = " Others cannot reach this machine: it has no other address." if facts["only_here"] else ""
    return "\n".join(
        [
            f"the pool {name} is up, after {facts['seconds']:.1f} s, at {where}.{only}",
            "",
            f"To lend a machine to it, type there ({_so_many(uses, 'machine')}, {within}):",
            f"  kalavai-nb join {facts['invites']['worker']['invite']}",
            "",
            f"To use it from a notebook ({_so_many(uses, 'notebook')}, {within}):",
            "  import kalavai_nb as kn",
            f'  pool = kn.Pool("{facts["invites"]["user"]["invite"]}")',
            "",
            f"kalavai-nb invite {name} makes more of these, kalavai-nb status says who runs what; Ctrl-C ends it.",
        ]
    )


def _so_many(uses: int, noun: str) -> str:
    return f"one {noun}" if uses == 1 else f"up to {uses} {noun}s"


def _detach(options: argparse.Namespace, kept: Kept) -> int:
    words = [NAME, kept.name, "--grace", options.grace, "--expires", options.expires, "--uses", str(options.uses)]
    words += ["--no-devices"] * options.no_devices + ["--users-invite"] * options.users_invite
    words += ["--devices", str(options.devices)] if options.devices is not None else []
    words += ["--listen", kept.listen] + (["--port", str(kept.port)] if kept.port else [])
    words += [word for address in kept.public for word in ("--public", address)]
    ready: dict[str, Any] = {}

    def say(said: dict[str, Any]) -> None:
        if said["event"] == "ready":
            ready.update(said)
        elif not options.json:
            print(said["text"], flush=True)

    log = kept.directory / LOG
    pid = detach(words, log, say)
    if options.json:
        print(json.dumps({**ready, "pid": pid, "log": str(log)}))
    else:
        text = ready["text"].replace("Ctrl-C ends it", f"kalavai-nb stop {kept.name} ends it")
        print(f"{text}\n(in the background, process {pid}; its log: {log})")
    return 0
