"""``%%pool`` and ``%pool``: parse fully, then hand over."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from kalavai_nb import pool as pools
from kalavai_nb.cell import CellRun
from kalavai_nb.cli import read_verb
from kalavai_nb.errors import CellSyntaxError, OptionError
from kalavai_nb.lm.methods import seats_of
from kalavai_nb.options import OPTION_NAMES, RunOptions, parse
from kalavai_nb.planner import command
from kalavai_nb.screen import publish
from kalavai_nb.table import snapshot_html, snapshot_text

HELP = f"""%%pool [options]      run this cell on the ranks of the pool
%pool                 the pool's devices and who holds them
%pool log [N] [rank]  all that cell N said (default: the last), or one rank of it
%pool set gpus=2 …    options for the cells that follow; %pool set alone shows and clears them
%pool plan MODEL      how many devices a model needs, now and in some years; %pool plan --help
%pool doctor          what differs on its machines, or is amiss there, and what to do
%pool restart         end this notebook's ranks, and the names they hold
%pool connect INVITE  connect to somebody's pool
%pool close           leave the pool; an embedded one ends

Options, as key=value or --flag: {", ".join(OPTION_NAMES)}.
kalavai_nb.RunOptions explains each."""


@magics_class
class PoolMagics(Magics):
    """The magics of one shell."""

    @cell_magic("pool")  # type: ignore[untyped-decorator]
    def cell(self, line: str, cell: str) -> CellRun | None:
        """Run this cell on the ranks of the pool. ``%pool help`` lists the options."""
        given = parse(line)
        RunOptions().updated(given)  # what cannot be meant is refused before a pool is opened
        pool = pools.current_pool()
        options = pool.defaults.updated(given)
        # lines are counted as the notebook counts them; a cell magic inside must stay first
        source = cell if cell.lstrip().startswith("%%") else f"# %%pool {line}\n{cell}"
        # the shell counts on before it runs a cell
        number = self.shell.execution_count - 1
        try:
            run = pool.start_cell(source, options, number=number)
        except SyntaxError as error:
            raise CellSyntaxError(error, number) from None
        if run is None:
            return None
        if options.background is not None:
            if options.background:
                self.shell.user_ns[options.background] = run
            return run
        run.result()
        return None

    @line_magic("pool")  # type: ignore[untyped-decorator]
    def line(self, line: str) -> None:
        """Look at the pool, or change it. ``%pool help`` lists what there is."""
        verb, _, rest = line.strip().partition(" ")
        verbs: dict[str, Callable[[str], Any]] = {
            "": self._status,
            "status": self._status,
            "help": lambda _: print(HELP),
            "log": self._log,
            "set": self._set,
            "plan": self._plan,
            "doctor": self._doctor,
            "restart": lambda _: print(pools.current_pool().restart()),
            "connect": lambda invite: pools.Pool(invite.strip()),
            "close": self._close,
        }
        if verb not in verbs:
            raise UsageError(f"%pool {verb} is not known; there is: {', '.join(filter(None, verbs))}.")
        verbs[verb](rest)

    def _status(self, _: str) -> None:
        if not pools.has_pool():
            print("No pool is open. %%pool opens an embedded one; %pool connect INVITE joins somebody's.")
            return
        pool = pools.current_pool()
        snapshot, owner = pool.snapshot(), pool.owner
        publish({"text/plain": snapshot_text(snapshot, owner), "text/html": snapshot_html(snapshot, owner)}, {})

    def _log(self, rest: str) -> None:
        words = rest.split()
        if not all(word.isdigit() for word in words) or len(words) > 2:
            raise UsageError(f"%pool log {rest}: wanted the number of a cell and of a rank, such as %pool log 12 0.")
        runs = pools.current_pool().runs if pools.has_pool() else []
        if words:
            runs = [run for run in runs if run.number == int(words[0])]
        if not runs:
            known = ", ".join(str(run.number) for run in pools.current_pool().runs) if pools.has_pool() else ""
            raise UsageError(f"there is no log of that cell; there is: {known or 'none'}.")
        print(runs[-1].log(int(words[1]) if len(words) == 2 else None))

    def _set(self, rest: str) -> None:
        given = parse(rest)
        RunOptions().updated(given)
        if given.keys() & {"async", "dry_run"}:
            raise OptionError("--async and --dry-run are for one cell and cannot be set for all.")
        pool = pools.current_pool()
        pool.defaults = pool.defaults.updated(given) if given else RunOptions()
        print(
            f"The cells that follow run with {rest}." if given else "The cells that follow run with the usual options."
        )

    def _plan(self, rest: str) -> None:
        options = read_verb(command, shlex.split(rest), "%pool plan")
        if options is not None:
            plan = command.make(options, seats_of(pools.current_pool().devices) if pools.has_pool() else None)
            publish({"text/plain": repr(plan), "text/html": plan._repr_html_()}, {})

    def _doctor(self, _: str) -> None:
        found = pools.current_pool().doctor()
        publish({"text/plain": repr(found), "text/html": found._repr_html_()}, {})

    def _close(self, _: str) -> None:
        if not pools.has_pool():
            print("No pool is open.")
            return
        pools.current_pool().close()
        print("The pool is closed.")
