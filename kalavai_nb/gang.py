"""The ranks of a session that were asked for alike, and what the notebook knows of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from kalavai_nb.blobs import Packed
from kalavai_nb.capture import Captured
from kalavai_nb.options import RunOptions
from kalavai_nb.state import Device


@dataclass
class Rank:
    """One rank: its number, its devices, the process that it is now, and the names it holds.

    ``names`` is {name: digest of what was sent, or empty where the rank assigned it}, as the rank reported it last.
    """

    number: int
    lease: str
    devices: list[Device]
    generation: str = ""
    port: int = 0
    names: dict[str, str] = field(default_factory=dict)
    # whether it has yet to run its first cell, for which ranks are seldom ready at the same time
    fresh: bool = True

    @property
    def worker(self) -> str:
        return self.devices[0].worker

    @property
    def machine(self) -> str:
        return self.devices[0].machine

    @property
    def where(self) -> str:
        return str(self.devices[0])


@dataclass
class Gang:
    """The ranks of one session that share a namespace's history: same filters, same devices per rank."""

    ranks: dict[int, Rank] = field(default_factory=dict)
    # the content of each local name when the ranks were last confronted with it, and of parts, as ``name[rank]``
    known: dict[str, str] = field(default_factory=dict)
    # what they were confronted with before that, and is still on their machines
    outdated: set[str] = field(default_factory=set)


@dataclass
class Sending:
    """What goes to which rank for one cell, and what need not."""

    take: dict[int, dict[str, Captured]]
    sent: list[Captured] = field(default_factory=list)
    reused: list[Captured] = field(default_factory=list)
    kept: list[Captured] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)

    def content(self) -> list[Packed]:
        """What ranks take, each content once, whoever takes it and under whichever name."""
        taken = [item.packed for take in self.take.values() for item in take.values()]
        return list({packed.blob.digest: packed for packed in taken}.values())


def gang_key(options: RunOptions) -> tuple[object, ...]:
    """Cells with the same key share their ranks."""
    return (options.gpus == 0, options.per, options.type, options.host, options.vram)


def plan_sending(gang: Gang, ranks: list[Rank], captured: list[Captured], *, explicit: bool) -> Sending:
    """Decide for each name and rank: send, reuse, or keep the rank's own.

    A name that a rank has assigned itself wins over a local one, unless that has changed since the rank was last
    confronted with it, or was asked for by name.
    """
    sending = Sending({rank.number: {} for rank in ranks})
    for item in captured:
        digest, known = item.packed.blob.digest, gang.known.get(item.name)
        held = {rank.number: rank.names.get(item.name) for rank in ranks}
        unchanged = known in (None, digest)
        keeping = [n for n, what in held.items() if what == "" and unchanged and not explicit]
        lacking = [n for n, what in held.items() if what != digest and n not in keeping]
        for number in lacking:
            sending.take[number][item.name] = item
        if lacking:
            sending.sent.append(item)
        elif not keeping:
            sending.reused.append(item)
        elif known is None:
            sending.kept.append(item)
        if known not in (None, digest):
            sending.superseded.append(str(known))
        gang.known[item.name] = digest
    # another name may still have the same content
    sending.superseded = [digest for digest in sending.superseded if digest not in gang.known.values()]
    return sending
