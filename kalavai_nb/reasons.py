"""What the ledger says about requests, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kalavai_nb.state import Device, Lease, Need


def too_many(need: Need, expected: Sequence[Device]) -> str:
    """Why a pool of these devices can never grant this, and what to ask for instead."""
    there = ", ".join(sorted(map(str, expected))) or "none"
    fitting = sum(map(need.fits, expected))
    what = f"asked for {need}"
    if need.per > 1:
        what += f" in groups of {need.per} on one machine"
    if not fitting and expected:
        types = ", ".join(sorted({f"{d.name} ({d.memory_bytes / 2**30:.0f} GB) on {d.host}" for d in expected}))
        return f"{what}, but no device of the pool is like that. There is: {types}. Ask for less, or leave it out."
    advice = f"Try gpus={fitting}" if fitting and need.per == 1 else "Ask for fewer"
    return f"{what}, but the pool has {len(expected)}: {there}. {advice}, or add a machine to the pool."


def why_waiting(
    place: int,
    need: Need,
    *,
    free: int,
    holders: Mapping[str, Sequence[Lease]],
    closing: Sequence[str],
    away: Sequence[str],
    idle_seconds: float,
    now: float,
) -> str:
    """What the request in this place of the queue waits for: who holds which of its devices, which are to come back."""
    parts = [f"{_ordinal(place)} in the queue", f"{free} of the {need.count} devices it needs are free"]
    held: dict[str, list[str]] = {}
    for device, leases in holders.items():
        for lease in leases:
            idle = "" if lease.running else f" (idle {now - lease.since:.0f} s, released at {idle_seconds:.0f} s)"
            held.setdefault(f"{lease.holder}{idle}", []).append(device)
    if closing:
        held["a session that is being closed"] = list(closing)
    parts += [f"{holder} holds {', '.join(devices)}" for holder, devices in held.items()]
    parts += [f"{device} was lost and is expected back" for device in away]
    return "; ".join(parts)


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{suffix}"
