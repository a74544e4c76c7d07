"""Who this machine or this notebook is in a pool, kept in private files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kalavai_nb.errors import InviteError
from kalavai_nb.identity import Identity
from kalavai_nb.places import data_directory, joined, read_private, write_private

_FILE = "membership.json"
_KEPT_SECONDS = 90 * 86400.0


@dataclass(frozen=True)
class Membership:
    """One member of one pool. ``gate`` is the SHA-256 of the gate's key, ``addresses`` are where it may be found.

    ``member`` is its id there, ``invite`` the id of the invite it came by, ``label`` what it called itself; whether it
    ``may_invite`` others is for the pool to say, and whether it ``stays``, so that it is worth waiting for.
    """

    pool: str
    member: str
    role: str
    addresses: tuple[str, ...]
    gate: str
    invite: str
    label: str
    identity: Identity
    may_invite: bool = False
    stays: bool = True

    @property
    def pool_id(self) -> str:
        """What the pool is called among all pools."""
        return self.identity.pool_id

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return joined(self.pool_id, self.role)

    def save(self) -> Membership:
        """Write it down; returns itself."""
        write_private(self.directory / _FILE, json.dumps(asdict(self), indent=1))
        return self

    def renewed(self, reply: dict[str, Any]) -> Membership:
        """The same member with what the gate has said: a new certificate, perhaps new addresses."""
        identity = replace(self.identity, certificate=str(reply["certificate"]))
        addresses = tuple(str(each) for each in reply["addresses"]) or self.addresses
        # where it was found may be no address that the gate knows of itself
        kept = [each for each in self.addresses if each not in addresses]
        may_invite, stays = reply.get("may_invite") is True, reply.get("stays") is not False
        return replace(self, identity=identity, addresses=(*addresses, *kept)[:16], may_invite=may_invite, stays=stays)

    def forget(self) -> None:
        """Be a member no more, as far as this machine knows."""
        (self.directory / _FILE).unlink(missing_ok=True)


def load(directory: Path) -> Membership:
    """The membership that is kept there. Raises InviteError where there is none that can be read."""
    try:
        fields = json.loads(read_private(directory / _FILE))
        texts = {name: str(fields[name]) for name in ("pool", "member", "role", "gate", "invite", "label")}
        identity = Identity(**{name: str(fields["identity"][name]) for name in ("ca", "certificate", "key")})
        addresses, may_invite = tuple(map(str, fields["addresses"])), fields.get("may_invite") is True
        stays = fields.get("stays") is not False
        return Membership(**texts, addresses=addresses, identity=identity, may_invite=may_invite, stays=stays)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InviteError(
            f"there is no membership in {directory} that can be read ({error}). Join again, with an invite."
        ) from None


def prune() -> None:
    """Forget what nobody has renewed for months, such as pools of notebooks that were closed."""
    written = {file: file.stat().st_mtime for file in (data_directory() / "joined").glob(f"*/{_FILE}")}
    # against the newest of them: the clock may be wrong at this moment
    for file in [file for file, at in written.items() if max(written.values()) - at > _KEPT_SECONDS]:
        shutil.rmtree(file.parent, ignore_errors=True)


def memberships() -> Iterator[Membership]:
    """All of this user on this machine that can be read; those that were renewed last come first."""
    files = (data_directory() / "joined").glob(f"*/{_FILE}")
    for file in sorted(files, key=lambda file: (-_written(file), file)):
        try:
            yield load(file.parent)
        except InviteError:
            continue


def find(*, pool: str = "", role: str = "", gate: str = "") -> Membership | None:
    """The membership of this role in the pool of this name, id or gate: of several, the one that was renewed last.

    A pool that was taken away and made anew has its old name, and another id.
    """
    for each in memberships():
        if role in ("", each.role) and pool in ("", each.pool, each.pool_id) and gate in ("", each.gate):
            return each
    return None


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
