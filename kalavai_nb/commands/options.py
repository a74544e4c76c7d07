"""Options that several verbs have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.security import parse_seconds

LIMITS = ("gpus", "memory", "hours", "when_idle", "max_power", "grace")


def add_json(parser: argparse.ArgumentParser) -> None:
    """For all verbs."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def speaker(options: argparse.Namespace) -> Callable[[str], None]:
    """Prints lines for people; none with ``--json``."""

    def say(text: str) -> None:
        if not options.json:
            print(text, flush=True)

    return say


def add_background(parser: argparse.ArgumentParser) -> None:
    """For verbs that go on."""
    parser.add_argument("--detach", action="store_true", help="go on in the background; returns when all is ready")
    # a pipe of the process that put this one into the background
    parser.add_argument("--ready-file", type=int, help=argparse.SUPPRESS)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What is lent of a machine."""
    parser.add_argument("--gpus", metavar="LIST", help="lend these GPUs alone, such as 0,1 (all)")
    parser.add_argument("--memory", metavar="M", help="of each device's memory, such as 80%% or 8GB (all)")
    parser.add_argument("--hours", metavar="H", help='such as 22:00-08:00 or "Sat-Sun, Mon-Fri 18:00-08:00" (always)')
    parser.add_argument(
        "--when-idle", nargs="?", const="yes", choices=("yes", "no"), help="lend only while you do not use the machine"
    )
    parser.add_argument("--max-power", metavar="W", help="of each device, in watts, such as 250 (no limit)")
    parser.add_argument("--grace", metavar="TIME", help="how long what runs may go on when you take it back (60s)")


def limit_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The limits that were given."""
    return {name: value for name in LIMITS if (value := getattr(options, name)) is not None}


def seconds(option: str, text: str) -> float:
    """A time such as 2h, as seconds. Raises OptionError."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise OptionError(f"{option} {text} cannot be meant: {error}.") from None


def add_invite(parser: argparse.ArgumentParser, uses: str) -> None:
    """How long an invite is good, and for how many."""
    parser.add_argument("--expires", default="2h", metavar="TIME", help="how long an invite can be used (2h)")
    parser.add_argument("--uses", type=int, default=1, metavar="N", help=uses)
