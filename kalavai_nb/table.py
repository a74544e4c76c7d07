"""A snapshot as a table: text for terminals and saved notebooks, plain HTML for everything else."""

from __future__ import annotations

import html

from kalavai_nb.state import Device, Snapshot

COLUMNS = ("#", "device", "kind", "name", "memory", "state")


def snapshot_text(snapshot: Snapshot, owner: str = "") -> str:
    """The pool in a few lines; ``owner`` is who looks, and is called "you"."""
    rows = [COLUMNS, *_rows(snapshot, owner)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_title(snapshot), *lines, *_queue(snapshot)])


def snapshot_html(snapshot: Snapshot, owner: str = "") -> str:
    """The same as a table that follows the front end's own style."""
    head = "".join(f"<th style='text-align:left'>{column}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _rows(snapshot, owner)
    )
    queue = "".join(f"<div>{html.escape(line)}</div>" for line in _queue(snapshot))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div>{html.escape(_title(snapshot))}</div>{table}{queue}"


def _title(snapshot: Snapshot) -> str:
    machines, owners = len({device.machine for device in snapshot.devices}), len(snapshot.owners)
    counts = [(len(snapshot.devices), "device"), (machines, "machine"), (owners, "owner")]
    return f"pool of {snapshot.pool}: " + ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)


def _rows(snapshot: Snapshot, owner: str) -> list[tuple[str, ...]]:
    return [
        (str(number), str(device), device.kind, device.name, _memory(device), _state(snapshot, device, owner))
        for number, device in enumerate(snapshot.devices)
    ]


def _memory(device: Device) -> str:
    shared = " (shared)" if device.kind in ("cpu", "mps") else ""
    return f"{device.memory_bytes / 2**30:.1f} GiB{shared}"


def _state(snapshot: Snapshot, device: Device, owner: str) -> str:
    states = []
    for lease in snapshot.leases_on(device.id):
        who = "you" if lease.owner == owner else lease.label
        what = f"runs a {lease.kind}" if lease.running else f"{lease.kind} idle for {snapshot.time - lease.since:.0f} s"
        states.append(f"{who}: {what}")
    return "; ".join(states) or "free"


def _queue(snapshot: Snapshot) -> list[str]:
    return [
        f"waiting: {waiting.label} for {waiting.count} device{'s' * (waiting.count != 1)}; {waiting.reason}"
        for waiting in snapshot.queue
    ]
