"""Where the ranks of a gang meet: torchrun's variables, for ranks on one machine or on several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from urllib.parse import urlsplit

from kalavai_nb.gang import Rank
from kalavai_nb.roads import LOOPBACK
from kalavai_nb.state import Link

Links = Mapping[tuple[str, str], Link]


def environment(ranks: Sequence[Rank], rank: Rank, world_size: int, links: Links) -> dict[str, str]:
    """torchrun's variables. LOCAL_RANK is 0: a rank sees its own GPU alone, so to torch it is a node of its own."""
    first = ranks[0]
    return {
        "RANK": str(rank.number),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": _address(first, rank.machine, ranks, links),
        "MASTER_PORT": str(first.port),
    }


def own_address(ranks: Sequence[Rank], rank: Rank, links: Links) -> str:
    """The address of a rank's machine at which the others come to it: its worker knows the interface that has it."""
    first = ranks[0]
    return _address(rank, first.machine, ranks, links)


def strangers(ranks: Sequence[Rank], links: Links) -> list[tuple[Rank, Rank]]:
    """Pairs of ranks whose machines do not both dial the other: one pair for each pair of machines."""
    one_of_each = {rank.machine: rank for rank in reversed(ranks)}.values()
    pairs = combinations(sorted(one_of_each, key=lambda rank: rank.number), 2)
    return [(a, b) for a, b in pairs if not (_reaches(a, b, links) and _reaches(b, a, links))]


def _address(rank: Rank, seen_from: str, ranks: Sequence[Rank], links: Links) -> str:
    """Where the machine of a rank is found from another one; from itself, as from any other of the gang."""
    own = _worker_host(rank)
    others = {other.machine for other in ranks} - {rank.machine}
    if not others or own != LOOPBACK:
        return own
    for source in [seen_from, *sorted(others)]:
        link = links.get((source, rank.machine))
        if link and link.direct:
            return link.address
    return own


def _reaches(a: Rank, b: Rank, links: Links) -> bool:
    link = links.get((a.machine, b.machine))
    # on a cluster of somebody's, workers have addresses of their own
    return link.direct if link else _worker_host(b) != LOOPBACK


def _worker_host(rank: Rank) -> str:
    return urlsplit(rank.worker).hostname or LOOPBACK
