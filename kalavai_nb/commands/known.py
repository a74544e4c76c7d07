"""The pools that are known on this machine, and which of them somebody means."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.hosting.kept import hosted_names
from kalavai_nb.lending.local_socket import NotRunning, ask, is_running
from kalavai_nb.link.membership import Membership, memberships
from kalavai_nb.places import hosted


@dataclass(frozen=True)
class Known:
    """A pool that is known here. ``part`` is "hosted" (it is kept here), "joined" (this machine is lent to it), "used".

    ``id`` is known of those that this machine has joined.
    """

    name: str
    part: str
    directory: Path
    id: str = ""
    membership: Membership | None = None

    @property
    def is_running(self) -> bool:
        """Whether a process serves it here now; those that are used have none of their own."""
        return self.part != "used" and is_running(self.directory)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """What that process answers. Raises KalavaiError, with what to type, where there is none."""
        try:
            return ask(self.directory, op, **fields)
        except NotRunning as trouble:
            verb = f"kalavai-nb {'start' if self.part == 'hosted' else 'join'} {self.name}"
            what = "does not run" if self.part == "hosted" else "is not lent to by this machine now"
            raise NotRunning(f"the pool {self.name} {what}: {verb} changes that. ({trouble})") from None


def known_pools() -> list[Known]:
    """All of them: those kept here, those lent to, those used."""
    own = [Known(name, "hosted", hosted(name)) for name in hosted_names()]
    parts = {"worker": "joined", "user": "used"}
    others = [
        Known(each.pool, parts.get(each.role, each.role), each.directory, each.pool_id, each) for each in memberships()
    ]
    return own + sorted(others, key=lambda known: (known.part, known.name))


def fitting_pools(said: str | None, part: str) -> list[Known]:
    """Those of this name or id that are ``part`` of those known here; of one name, the one renewed last comes first."""
    there = [known for known in known_pools() if known.part == part]
    return [known for known in there if said in (None, known.name) or (known.id and known.id == said)]


def find_pool(said: str | None, part: str, verb: str) -> Known:
    """The pool of this name or id that is ``part`` of those known here; the only one where nothing is said.

    Where there are several, the one that runs is meant. Raises OptionError.
    """
    there, fitting = fitting_pools(None, part), fitting_pools(said, part)
    if len(fitting) > 1:
        fitting = [known for known in fitting if known.is_running] or fitting
    if len(fitting) == 1:
        return fitting[0]
    words = {"hosted": "kept on this machine", "joined": "that this machine is lent to", "used": "used from here"}[part]
    if not there:
        make = {"hosted": "kalavai-nb start makes one", "joined": "kalavai-nb join INVITE lends it"}
        raise OptionError(f"there is no pool {words}; {make.get(part, 'kn.Pool(INVITE) connects to one')}.")
    names = ", ".join(f"{each.name} ({each.id})" if each.id else each.name for each in fitting or there)
    if fitting:
        raise OptionError(f"several pools could be meant: say which one, as in kalavai-nb {verb} POOL, of {names}.")
    near = difflib.get_close_matches(str(said), [each.name for each in there], n=1)
    raise OptionError(
        f"no pool {words} is called {said!r}{f'; did you mean {near[0]!r}?' if near else '.'} There are: {names}."
    )


def looks_like_invite(text: str) -> bool:
    """Whether somebody who typed this meant an invite, perhaps a damaged one."""
    text = text.strip()
    return "://" in text or len(text) > 60 or text.lower().startswith("kalavai:")


def check_not_lent_by_host(gate: str) -> None:
    """Raise KalavaiError where this very machine keeps that pool, and lends it the same devices already."""
    for known in known_pools():
        if known.part != "hosted" or not known.is_running:
            continue
        status = known.ask("status")
        if status["gate"] == gate and status["devices"]:
            lent = ", ".join(sorted(each["device"] for each in status["devices"].values()))
            raise KalavaiError(
                f"this machine keeps the pool {known.name}, and lends it {lent} already. To lend them by "
                "kalavai-nb join, with limits of their own, start the pool with --no-devices."
            )


def check_running(known: Known) -> None:
    """Raise KalavaiError where a process serves it already."""
    if known.is_running:
        status = known.ask("status")
        if known.part == "hosted":
            raise KalavaiError(
                f"the pool {known.name} runs already (process {status['pid']}): kalavai-nb status shows it, "
                f"kalavai-nb invite {known.name} lets somebody in, kalavai-nb stop {known.name} ends it."
            )
        raise KalavaiError(
            f"this machine is lent to {known.name} already (process {status['pid']}): kalavai-nb status shows what "
            f"runs, kalavai-nb limits changes what is lent, kalavai-nb leave {known.name} ends it."
        )
