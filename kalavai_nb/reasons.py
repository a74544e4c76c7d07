"""What the ledger says about requests, in words: short ones, however many devices there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kalavai_nb.state import Device, Lease, Need

# of what there may be very many, so many are named, and the rest is counted
MOST_NAMED = 8
MOST_DEVICES_NAMED = 24


@dataclass(frozen=True)
class Wait:
    """What is in the way of a request. Devices are told by name; ``others`` is how many more are held.

    ``is_pinned`` where others are free, but ranks that are to go on are on those that are held.
    """

    free: int
    holders: Mapping[str, Sequence[Lease]]
    others: int
    closing: Sequence[str]
    leaving: Mapping[str, str]
    left: Mapping[str, str]
    lost: Sequence[str]
    unmeasured: Sequence[tuple[str, str]]
    is_pinned: bool
    is_split: bool


def too_many(need: Need, expected: Sequence[Device], leaving: Mapping[str, str]) -> str:
    """Why a pool of these devices can never grant this, and what to ask for instead."""
    there = _some(sorted(map(str, expected)), MOST_DEVICES_NAMED) or "none"
    fitting = sum(map(need.fits, expected))
    what = f"asked for {need}"
    if need.per > 1:
        what += f" in groups of {need.per} on one machine"
    if not fitting and expected:
        kinds = sorted({f"{d.name} ({d.memory_bytes / 2**30:.0f} GB) on {d.host}" for d in expected})
        types = _some(kinds, MOST_DEVICES_NAMED)
        return f"{what}, but no device of the pool is like that. There is: {types}. Ask for less, or leave it out."
    advice = f"Try gpus={fitting}" if fitting and need.per == 1 else "Ask for fewer"
    going = f" ({'; '.join(_each_leaving(leaving))})" if leaving else ""
    return f"{what}, but the pool has {len(expected)}: {there}{going}. {advice}, or add a machine to the pool."


def apart(need: Need, pairs: Sequence[tuple[str, str]]) -> str:
    """Why no machines of the pool that reach each other have so many devices, and what to ask for instead."""
    return (
        f"asked for {need} on machines that reach each other, but {_of_pairs(pairs)} cannot. Ask for fewer, or with "
        "reach=any, where ranks do not use torch.distributed between machines."
    )


def why_waiting(place: int, need: Need, wait: Wait, idle_seconds: float, now: float) -> str:
    """What the request in this place of the queue waits for: who holds which of its devices, which are to come back."""
    parts = [f"{_ordinal(place)} in the queue", f"{wait.free} of the {need.count} devices it needs are free"]
    held: dict[str, list[str]] = {}
    for device, leases in wait.holders.items():
        for lease in leases:
            idle = "" if lease.running else f" (idle {now - lease.since:.0f} s, released at {idle_seconds:.0f} s)"
            held.setdefault(f"{lease.holder}{idle}", []).append(device)
    if wait.closing:
        held["a session that is being closed"] = list(wait.closing)
    for holder in list(held)[:MOST_NAMED]:
        parts.append(f"{holder} holds {_some(held[holder])}")
    if len(held) > MOST_NAMED or wait.others:
        rest = len({device for holder in list(held)[MOST_NAMED:] for device in held[holder]}) + wait.others
        parts.append(f"{rest} more are held")
    if wait.is_pinned:
        parts.append("its ranks are there, and others are free: ■ and %pool restart have them placed anew")
    if wait.unmeasured:
        parts.append(f"whether {_of_pairs(wait.unmeasured)} reach each other is not measured yet")
    elif wait.is_split:
        parts.append("those that are free are on machines that cannot reach each other")
    parts += _each_leaving(wait.leaving)
    parts += _at_most([f"{device} has left ({why})" for device, why in wait.left.items()])
    parts += _at_most([f"{device} was lost and is expected back" for device in wait.lost])
    return "; ".join(parts)


def _each_leaving(leaving: Mapping[str, str]) -> list[str]:
    return _at_most([f"{device} is leaving ({sentence})" for device, sentence in leaving.items()])


def _of_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """``a and b, a and c``."""
    return _some([f"{one} and {other}" for one, other in pairs])


def _some(names: Sequence[str], most: int = MOST_NAMED) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _at_most(parts: list[str]) -> list[str]:
    more = len(parts) - MOST_NAMED
    return parts if more <= 0 else [*parts[:MOST_NAMED], f"so it is with {more} more"]


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{suffix}"
