"""What the ledger decides."""

from __future__ import annotations

from dataclasses import dataclass

from kalavai_nb.state import Lease


@dataclass(frozen=True)
class Granted:
    """The leases of a request, in the order of its ranks: those that it wakes, then the new ones."""

    request: str
    owner: str
    leases: tuple[Lease, ...]


@dataclass(frozen=True)
class Refused:
    """A request that was queued, and that the pool can never grant any more."""

    request: str
    owner: str
    reason: str


@dataclass(frozen=True)
class Evict:
    """Take this lease back from an idle session: end its rank, then call ``Ledger.cleared`` for its devices."""

    lease: Lease
    wanted_by: str


@dataclass(frozen=True)
class Yield:
    """Ask the owner of this lease to release it, after the trial that runs on it if one does.

    Said once for each, and once more where its device ``is_leaving``.
    """

    lease: Lease
    is_leaving: bool = False


@dataclass(frozen=True)
class Drained:
    """Nobody holds this device any more, which is leaving. Said once."""

    device: str


Decision = Granted | Refused | Evict | Yield | Drained
