"""``--dry-run``: where a cell would run, what would be sent, and which versions differ. Touches nothing."""

from __future__ import annotations

from typing import Any

from kalavai_nb.capture import human_bytes
from kalavai_nb.doctor import NOT_COMPARED
from kalavai_nb.engine import Engine
from kalavai_nb.freight import present
from kalavai_nb.options import RunOptions
from kalavai_nb.session import Session
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device


def preview(engine: Engine, session: Session, source: str, options: RunOptions, namespace: dict[str, Any]) -> str:
    """What running ``source`` with these options would do, in a few lines.

    Raises what it would raise before anything runs: SyntaxError, SendError, OptionError, NotEnoughDevices.
    """
    captured = session.captured(source, options, namespace)
    ranks = session.roster.expected(options)
    snapshot = engine.snapshot()
    devices = list({device.worker: device for _, placed in ranks for device in placed}.values())
    lines = ["dry run, nothing was started:"]
    lines += [
        f"  rank {n}: {', '.join(map(str, placed))} ({_state(snapshot, placed, engine.owner)})" for n, placed in ranks
    ]
    sizes = [f"{item.name} {human_bytes(item.packed.blob.total_bytes)}" for item in captured if not item.is_module]
    modules = [item.name for item in captured if item.is_module]
    lines.append(
        f"  names to send: {', '.join(sizes) or 'none'}" + (f"; modules: {', '.join(modules)}" if modules else "")
    )
    lines += [f"  {difference}" for difference in _version_differences(engine, devices)] or ["  versions agree"]
    return "\n".join(lines)


def _state(snapshot: Snapshot, devices: list[Device], owner: str) -> str:
    leases = {lease.id: lease for device in devices for lease in snapshot.leases_on(device.id)}.values()
    if any(lease.running or lease.owner != owner for lease in leases):
        return "busy: " + ", ".join(dict.fromkeys(lease.label for lease in leases))
    return "yours, idle" if leases else "free"


def _version_differences(engine: Engine, devices: list[Device]) -> list[str]:
    from kalavai_nb.worker.host import versions

    here = versions()
    differences: dict[str, list[str]] = {}
    replies = engine.call([(device.worker, {"op": "kn_versions"}) for device in devices])
    for device, reply in zip(devices, replies, strict=True):
        there = present(reply)
        for name in sorted((here.keys() | there.keys()) - set(NOT_COMPARED)):
            if here.get(name) != there.get(name):
                text = f"{name}: {here.get(name, 'none')} here, {there.get(name, 'none')} there"
                differences.setdefault(text, []).append(str(device))
    return [f"{text} ({', '.join(where)})" for text, where in differences.items()]
