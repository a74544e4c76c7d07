"""``kalavai-nb status``: what of this machine is lent to whom, and what runs in the pools that are kept here."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from kalavai_nb.commands.known import Known, known_pools
from kalavai_nb.commands.options import add_json
from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.grid import grid_text
from kalavai_nb.lending.holders import device_title, doing, held_devices, span
from kalavai_nb.lending.local_socket import NotRunning

NAME = "status"
HELP = "who runs what on which device, since when"
Status = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("pool", nargs="?", help="this pool alone")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print how each pool is that is kept here or that this machine has joined."""
    pools = [known for known in known_pools() if known.part != "used" and options.pool in (None, known.name, known.id)]
    if not pools:
        raise OptionError(
            f"no pool called {options.pool!r} is kept here, or lent to by this machine; kalavai-nb list has all known."
            if options.pool
            else "no pool is kept on this machine or lent to by it: kalavai-nb start makes one, kalavai-nb join INVITE "
            "lends this machine."
        )
    found = [_status(known) for known in pools]
    if options.json:
        print(json.dumps(found))
    else:
        print("\n\n".join(_text(known, status) for known, status in zip(pools, found, strict=True)))
    return 0


def _status(known: Known) -> Status:
    plain: Status = {"kind": known.part, "pool": known.name, "running": False}
    try:
        return {**plain, **known.ask("status", snapshot=known.part == "hosted"), "running": True}
    except NotRunning:
        return plain
    except KalavaiError as error:
        return {**plain, "trouble": str(error)}


def _text(known: Known, status: Status) -> str:
    if not status["running"]:
        verb = "start" if known.part == "hosted" else "join"
        where = "kept here, does not run" if known.part == "hosted" else "this machine is not lent to it now"
        trouble = f" ({status['trouble']})" if "trouble" in status else ""
        return f"{known.name}: {where}; kalavai-nb {verb} {known.name} changes that{trouble}"
    lines = _hosted(status) if known.part == "hosted" else _joined(status)
    if status["is_leaving"]:
        lines.insert(1, "it is ending: what runs may end first")
    if "trouble" in status:
        lines.append(f"! {status['trouble']}")
    return "\n".join(lines)


def _hosted(status: Status) -> list[str]:
    counts = f"{_count(status['members'], 'member')}, {status['connected']} connected"
    lines = [f"{status['pool']}: kept here, up for {_since(status)}, at {', '.join(status['addresses'])}; {counts}"]
    snapshot = status.get("snapshot")
    if snapshot:
        lines += _devices(snapshot)
        lines += [f"waiting: {each.get('label')}: {each.get('reason')}" for each in snapshot["queue"].values()]
        lines += [f"! {each.get('text')}" for each in snapshot["alerts"].values()]
    return lines


def _joined(status: Status) -> list[str]:
    link = status["link"]
    way = f"connected for {span(time.time() - link['since'])}" if link["up"] else f"no connection ({link['why']})"
    lines = [f"{status['pool']}: this machine is lent to it, for {_since(status)}; {way}"]
    lines.append(f"limits: {status['limits_text'] or 'none'}")
    held: dict[str, list[str]] = {}
    for each in status.get("held", ()):
        held.setdefault(each["device"], []).append(doing(each))
    rows = [
        (each["device"], each["name"], _state(each), "; ".join(held.get(each["device"], ())) or "nothing runs there")
        for each in status["devices"].values()
    ]
    return [*lines, grid_text(("device", "name", "state", "who runs what"), rows)]


def _devices(snapshot: Status) -> list[str]:
    if not snapshot["devices"]:
        return ["no device is lent to it now"]
    held: dict[str, list[str]] = {}
    for each in held_devices(snapshot):
        held.setdefault(each["device"], []).append(doing(each))
    rows = []
    for device in snapshot["devices"].values():
        title, reading = device_title(device), device.get("reading", {})
        use = reading.get("utilisation")
        memory = f"{device.get('memory_bytes', 0) / 2**30:.1f} GiB"
        what = "; ".join(held.get(title, ())) or "free"
        limits = str(device.get("limits", "")) or "none"
        rows.append((title, str(device.get("name")), memory, "" if use is None else f"{use:.0%}", limits, what))
    return [grid_text(("device", "name", "memory", "use", "limits", "who runs what"), rows)]


def _state(device: dict[str, str]) -> str:
    return f"{device['state']}: {device['why']}" if device["why"] else device["state"]


def _since(status: Status) -> str:
    return span(time.time() - status["since"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
