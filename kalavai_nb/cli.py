"""The command ``kalavai-nb``. A verb is a module with NAME, HELP, ``add_arguments(parser)`` and ``run(options)``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.options import nearest

VERBS = (
    *(f"kalavai_nb.commands.{verb}" for verb in ("start", "join", "invite", "revoke", "status", "limits", "leave")),
    *(f"kalavai_nb.commands.{verb}" for verb in ("stop", "list")),
    "kalavai_nb.planner.command",
)
DESCRIPTION = "Every GPU you and your friends own, in one notebook."
WRONG = 2
_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Says what is wrong as an error of ours, so that a magic can use it, too."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As always, but it is the verb's own parser that refuses what it does not know."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(options, "parser", self).refuse(unknown)
        return options

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise OptionError for these words, with the option that the first of them is nearest to."""
        shown = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        word = next((word for word in unknown if word.startswith("-")), "")
        self.error(f"unrecognized arguments: {' '.join(unknown)}", nearest(word.partition("=")[0], shown))

    def error(self, message: str, hint: str = "") -> NoReturn:
        """Raise OptionError instead of leaving."""
        raise OptionError(f"{message}; {self.prog} --help says what there is.{hint}")


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``kalavai-nb`` and ``python -m kalavai_nb``; returns the exit status."""
    given = sys.argv[1:] if words is None else list(words)
    if not given:
        parser().print_help()
        return WRONG
    try:
        options = parser().parse_args(given)
        status: int = options.run(options)
    except KalavaiError as error:
        print(f"kalavai-nb: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # whoever read has read enough; nothing is left to be flushed at exit
        sys.stdout = None
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"kalavai-nb: {where}{error.strerror or error}", file=sys.stderr)
        return WRONG
    return status


def parser() -> Parser:
    """All verbs, each with its options."""
    found = Parser(prog="kalavai-nb", description=DESCRIPTION)
    found.add_argument("--version", action="version", version=f"kalavai-nb {metadata.version('kalavai-nb')}")
    commands = found.add_subparsers(metavar="VERB", required=True)
    for module in VERBS:
        _add(commands, importlib.import_module(module))
    return found


def read_verb(verb: Any, words: Sequence[str], prog: str) -> argparse.Namespace | None:
    """The options of one verb as a magic has them, such as ``%pool plan``; None where help was asked for and printed.

    Raises OptionError for words that cannot be meant.
    """
    own = Parser(prog=prog, description=verb.HELP)
    verb.add_arguments(own)
    try:
        options: argparse.Namespace = own.parse_args(list(words))
    except SystemExit:
        return None
    return options


def _add(commands: Any, verb: Any) -> None:
    own = commands.add_parser(verb.NAME, help=verb.HELP, description=f"{verb.HELP[0].upper()}{verb.HELP[1:]}.")
    verb.add_arguments(own)
    own.set_defaults(run=verb.run, parser=own)
