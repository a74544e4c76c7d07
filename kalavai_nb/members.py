"""Who may come into a pool: the invites that are out, and the members that came by them. Pure, but for one file.

Kept is what must be: public halves of keys, names, roles, times. Times are those of the head's clock, and arguments.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kalavai_nb.errors import InviteError, KalavaiError, OptionError
from kalavai_nb.fields import made
from kalavai_nb.invites import ROLES, SECRET_BYTES, invite_id
from kalavai_nb.places import read_private, write_private

_VERSION = 1
# invites that nobody can use any more are forgotten after so long; until then a reason can be given
_KEPT_SECONDS = 30 * 86400.0
_MOST_SECONDS = 10 * 365 * 86400.0


class Refused(KalavaiError):
    """Somebody who may not come in. The text is for them: it says why, and what to do."""


@dataclass(frozen=True)
class Invitation:
    """An invite as the pool remembers it: not its secret, but the public ``key`` that belongs to it.

    ``uses`` is how many may come by it, ``used`` how many have. ``stay_seconds`` is how long those may stay (0: until
    they are revoked).
    """

    id: str
    key: str
    role: str
    expires: float
    uses: int = 1
    used: int = 0
    stay_seconds: float = 0.0
    revoked: bool = False

    def check(self, now: float) -> None:
        """Raise Refused where nobody can come by it any more."""
        if self.revoked:
            raise Refused("the invite was revoked. Ask for a new one.")
        if self.expires < now:
            raise Refused(f"the invite expired {_span(now - self.expires)} ago. Ask for a new one.")
        if self.used >= self.uses:
            times = "once" if self.uses == 1 else f"{self.uses} times"
            raise Refused(f"the invite was for {times}, and has been used. Ask for a new one.")


@dataclass(frozen=True)
class Member:
    """A machine or a notebook of the pool. It is known by its ``key``; ``until`` is 0 where it may stay."""

    id: str
    label: str
    role: str
    key: str
    invite: str
    since: float
    until: float = 0.0
    revoked: bool = False

    def check(self, now: float) -> None:
        """Raise Refused where it is welcome no more."""
        if self.revoked:
            raise Refused("this membership was revoked. Ask for a new invite.")
        if self.until and self.until < now:
            raise Refused(f"this membership ended {_span(now - self.until)} ago. Ask for a new invite.")

    @property
    def name(self) -> str:
        """What its certificate says: its role and its id."""
        return f"{self.role}:{self.id}"


class Members:
    """The invites and members of one pool, written to ``path`` with each change (None: kept nowhere)."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._invitations: dict[str, Invitation] = {}
        self._members: dict[str, Member] = {}
        if path is not None and path.exists():
            self._load(path)

    @property
    def invitations(self) -> list[Invitation]:
        """All that are remembered, oldest first."""
        return list(self._invitations.values())

    @property
    def members(self) -> list[Member]:
        """All that have ever come and are not forgotten, oldest first."""
        return list(self._members.values())

    def invite(
        self, role: str, key_of: Any, *, now: float, seconds: float, uses: int = 1, stay_seconds: float = 0.0
    ) -> tuple[Invitation, str]:
        """A new invitation and its secret, which is kept nowhere. ``key_of(secret)`` is the public key of it.

        Raises OptionError for what cannot be meant.
        """
        if role not in ROLES:
            raise OptionError(f"role={role} cannot be meant: wanted user (runs things) or worker (lends a machine).")
        if uses < 1 or not 0 < seconds <= _MOST_SECONDS or not 0 <= stay_seconds <= _MOST_SECONDS:
            raise OptionError(
                "an invite is for one use or more, and for a time to come of at most ten years; got "
                f"uses={uses}, {seconds:g} s, and {stay_seconds:g} s to stay."
            )
        secret = secrets.token_hex(SECRET_BYTES)
        invitation = Invitation(invite_id(secret), key_of(secret), role, now + seconds, uses, 0, stay_seconds)
        gone = [i.id for i in self._invitations.values() if i.expires < now - _KEPT_SECONDS]
        for id in gone:
            del self._invitations[id]
        self._invitations[invitation.id] = invitation
        self._save()
        return invitation, secret

    def invitation(self, id: str) -> Invitation | None:
        return self._invitations.get(id)

    def member(self, id: str) -> Member | None:
        return self._members.get(id)

    def enrol(self, id: str, key: str, label: str, now: float) -> Member:
        """Somebody has come by this invitation, and is known by ``key`` from now on. Raises Refused.

        A key that is known already is the member that it was: an answer may have been lost on its way.
        """
        invitation = self._invitations.get(id)
        if invitation is None:
            raise Refused("the invite is not known here: it may be of a pool that was made anew. Ask for a new one.")
        known = next((m for m in self._members.values() if m.key == key and m.invite == id), None)
        if known:
            known.check(now)
            return known
        if any(m.key == key for m in self._members.values()):
            raise Refused("this key belongs to another member.")
        invitation.check(now)
        until = now + invitation.stay_seconds if invitation.stay_seconds else 0.0
        # a name that looks like an id would be revoked in its place
        label = f"called {label}" if re.fullmatch("[mi]-[0-9a-f]{8}", label) else label
        member = Member(f"m-{secrets.token_hex(4)}", label[:64], invitation.role, key, id, now, until)
        self._invitations[id] = replace(invitation, used=invitation.used + 1)
        self._members[member.id] = member
        try:
            self._save()
        except OSError:
            # what is not written down has not happened: the invite is still good
            self._invitations[id] = invitation
            del self._members[member.id]
            raise
        return member

    def revoke(self, who: str) -> list[Member]:
        """Nobody called so (a member's id or label, or an invite's id with all who came by it) is welcome any more.

        Returns those whose connections are to be closed. Raises OptionError where nobody is called so.
        """
        chosen = [m for m in self._members.values() if who in (m.id, m.label, m.invite) and not m.revoked]
        invitation = self._invitations.get(who)
        if not chosen and (invitation is None or invitation.revoked):
            known = [f"{m.label} ({m.id})" for m in self._members.values() if not m.revoked]
            known += [i.id for i in self._invitations.values() if not i.revoked]
            there = ", ".join(known) or "nobody"
            raise OptionError(f"nobody to revoke is called {who!r}; there is: {there}.")
        if invitation:
            self._invitations[who] = replace(invitation, revoked=True)
        for member in chosen:
            self._members[member.id] = replace(member, revoked=True)
        self._save()
        return [self._members[member.id] for member in chosen]

    def forget(self, id: str) -> None:
        """This member has left for good."""
        if self._members.pop(id, None):
            self._save()

    # inside

    def _save(self) -> None:
        if self._path is not None:
            nouns: dict[str, dict[str, Any]] = {"invites": self._invitations, "members": self._members}
            content = {name: [asdict(each) for each in kept.values()] for name, kept in nouns.items()}
            write_private(self._path, json.dumps({"version": _VERSION, **content}, indent=1))

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(read_private(path))
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            self._invitations = {each.id: each for each in _nouns(Invitation, content["invites"])}
            self._members = {each.id: each for each in _nouns(Member, content["members"])}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            # an empty list instead would let nobody in, and be written over what can perhaps be mended
            raise InviteError(
                f"the list of members, {path}, cannot be read ({error}). Mend it, or move it away: then nobody is a "
                "member any more, and all need new invites."
            ) from None


def _nouns(noun: Any, listed: Iterable[Any]) -> list[Any]:
    return [made(noun, each) for each in listed]


def _span(seconds: float) -> str:
    """How long, in one unit."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
