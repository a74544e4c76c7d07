"""A snapshot as a still picture: text for terminals and saved notebooks, plain HTML for everything else."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kalavai_nb.grid import grid_text
from kalavai_nb.reading import Reading
from kalavai_nb.snapshot import Cell, ModelState, Snapshot, SweepState
from kalavai_nb.state import Device, TrialState

COLUMNS = ("#", "device", "kind", "name", "memory", "state")
LIVE_COLUMNS = ("#", "device", "name", "memory", "use", "temp", "power", "state")
LINE_CHARACTERS = 120
NAME_CHARACTERS = 20
# in lines, a name does without them
MAKERS = ("NVIDIA GeForce ", "NVIDIA ", "AMD Radeon ", "AMD ")
BAR_CHARACTERS = 20
EVENTS = 5
NOT_KNOWN = "n/a"
# whose ways to each other have a line each
MACHINES = 6

T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """What is in one place of the table. A ``fraction``, from 0 to 1, is drawn as a bar where bars can be drawn."""

    text: str
    fraction: float | None = None


def snapshot_text(snapshot: Snapshot, owner: str = "", note: str = "") -> str:
    """The pool in a few lines of 120 characters at most.

    ``owner`` is who looks, and is called "you"; ``note`` is a sentence about the picture itself, such as that its head
    does not answer any more.
    """
    columns = _columns(snapshot)
    rows = [
        [
            _brief(value.text) if column == "name" and snapshot.readings else value.text
            for column, value in zip(columns, row, strict=True)
        ]
        for row in _rows(snapshot, owner)
    ]
    table = [_fitted(line) for line in grid_text(columns, rows).splitlines()]
    lines = [wrapped for line in _lines(snapshot, owner) for wrapped in _wrapped(line)]
    return "\n".join([*_wrapped(_title(snapshot)), *_wrapped(note), *table, *lines])


def snapshot_html(snapshot: Snapshot, owner: str = "", note: str = "") -> str:
    """The same as a table that follows the front end's own style; bars where readings are."""
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _columns(snapshot))
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{_html_of(value)}</td>" for value in row) + "</tr>"
        for row in _rows(snapshot, owner)
    )
    above = "".join(f"<div>{html.escape(line)}</div>" for line in (_title(snapshot), note) if line)
    below = "".join(f"<div>{html.escape(line)}</div>" for line in _lines(snapshot, owner))
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def snapshot_bundle(snapshot: Snapshot, owner: str = "", note: str = "") -> dict[str, str]:
    """Both, as a MIME bundle."""
    return {
        "text/plain": snapshot_text(snapshot, owner, note),
        "text/html": snapshot_html(snapshot, owner, note),
    }


# devices


def _title(snapshot: Snapshot) -> str:
    machines, owners = len({device.machine for device in snapshot.devices}), len(snapshot.owners)
    counts = [(len(snapshot.devices), "device"), (machines, "machine"), (owners, "owner")]
    known = [each.utilisation for each in snapshot.readings.values() if each.utilisation is not None]
    use = f"; {sum(known) / len(known):.0%} in use" if known else ""
    return f"pool of {snapshot.pool}: " + ", ".join(_count(n, word) for n, word in counts) + use


def _columns(snapshot: Snapshot) -> tuple[str, ...]:
    columns = LIVE_COLUMNS if snapshot.readings else COLUMNS
    return tuple(_with_speed(snapshot, columns, "speed"))


def _rows(snapshot: Snapshot, owner: str) -> list[list[Value]]:
    rows = []
    for number, device in enumerate(snapshot.devices):
        reading = snapshot.readings.get(device.id)
        name, memory, state = Value(device.name), _memory(device, reading), Value(_state(snapshot, device, owner))
        if snapshot.readings:
            row = [Value(str(number)), Value(str(device)), name, memory, *_read(reading or Reading()), state]
        else:
            row = [Value(str(number)), Value(str(device)), Value(device.kind), name, memory, state]
        rows.append(_with_speed(snapshot, row, Value(_speed(device.flops))))
    return rows


def _with_speed(snapshot: Snapshot, row: Sequence[T], speed: T) -> list[T]:
    """One column more, after the name, where devices were timed."""
    if not any(device.flops for device in snapshot.devices):
        return list(row)
    place = (LIVE_COLUMNS if snapshot.readings else COLUMNS).index("memory")
    return [*row[:place], speed, *row[place:]]


def _speed(flops: float | None) -> str:
    """``"2.1 TFLOP/s"``: of a matrix product."""
    if not flops:
        return NOT_KNOWN
    value, unit = (flops / 1e12, "TFLOP/s") if flops >= 1e12 else (flops / 1e9, "GFLOP/s")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def _memory(device: Device, reading: Reading | None) -> Value:
    shared = " (shared)" if device.kind in ("cpu", "mps") else ""
    total = (reading and reading.memory_total_bytes) or device.memory_bytes
    used = f"{reading.memory_used_bytes / 2**30:.1f}/" if reading and reading.memory_used_bytes is not None else ""
    return Value(f"{used}{total / 2**30:.1f} GiB{shared}", reading.memory_fraction if reading else None)


def _read(reading: Reading) -> list[Value]:
    limit = f"/{reading.power_limit_watts:.0f}" if reading.power_limit_watts is not None else ""
    return [
        Value(_or_none(reading.utilisation, "{:.0%}"), reading.utilisation),
        Value(_or_none(reading.temperature_celsius, "{:.0f} °C")),
        Value(_or_none(reading.power_watts, f"{{:.0f}}{limit} W")),
    ]


def _state(snapshot: Snapshot, device: Device, owner: str) -> str:
    silent, leaving = snapshot.silent_seconds.get(device.id), snapshot.leaving.get(device.id)
    said = [f"no news for {duration(silent)}"] if silent else []
    said += [leaving] if leaving else []
    leases = snapshot.leases_on(device.id)
    for lease in leases:
        who = "you" if lease.owner == owner else lease.label
        share = f"{lease.share:g} of it, " if lease.share < 1 else ""
        what = f" for {lease.what}" if lease.what else ""
        idle = f"{lease.kind} idle for {duration(snapshot.time - lease.since)}"
        said.append(f"{who}: {share}{f'runs a {lease.kind}{what}' if lease.running else idle}")
    return "; ".join(said if leases or leaving else [*said, "free"])


# what runs there, and what there is to say


def _lines(snapshot: Snapshot, owner: str) -> Iterator[str]:
    names = {device.id: str(device) for device in snapshot.devices}

    def who(id: str) -> str:
        return "you" if id == owner else snapshot.owners.get(id, "somebody who left")

    yield from (f"! {alert.text}" for alert in snapshot.alerts)
    for waiting in snapshot.queue:
        yield f"waiting: {waiting.label} for {_count(waiting.count, 'device')}; {waiting.reason}"
    yield from (_cell(cell, who(cell.owner), snapshot.time) for cell in snapshot.cells)
    yield from (_sweep(sweep, who(sweep.owner)) for sweep in snapshot.sweeps)
    yield from (_model(model, who(model.owner), names) for model in snapshot.models)
    yield from _limits(snapshot.devices)
    for device in snapshot.devices:
        reading = snapshot.readings.get(device.id)
        # of stand-ins there is nothing unusual to say
        if reading and reading.note and device.kind != "cpu":
            yield f"{device}: {reading.note}"
    yield from _ways(snapshot)
    # who comes and goes is seen above
    for event in [event for event in snapshot.events if event.kind not in ("joined", "left")][-EVENTS:]:
        yield f"{duration(max(0.0, snapshot.time - event.time))} ago: {event.text}"


def _limits(devices: Iterable[Device]) -> Iterator[str]:
    """What owners lend, equal limits once."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        groups.setdefault(device.limits, []).append(str(device))
    for limits, names in groups.items():
        if limits:
            yield f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} lent with limits: {limits}"


def _ways(snapshot: Snapshot) -> Iterator[str]:
    """From each machine to the others; of many, only how many ways there are."""
    if len(snapshot.machines) <= MACHINES:
        hosts = {device.machine: device.host for device in snapshot.devices}
        yield from (f"from {hosts.get(m.id, m.host)}: {m.links}" for m in snapshot.machines if m.links)
        return
    direct = sum(link.direct for link in snapshot.links)
    if snapshot.links:
        others = len(snapshot.links) - direct
        yield f"{len(snapshot.links)} ways between machines: {direct} direct, {others} by the gate"


def _cell(cell: Cell, who: str, now: float) -> str:
    number = f"cell {cell.number}" if cell.number else "a cell"
    return f"{number} of {who} for {duration(now - cell.since)} on {_count(cell.ranks, 'rank')}: {cell.text}"


def _sweep(sweep: SweepState, who: str) -> str:
    ended = sum(count for state, count in sweep.counts.items() if state not in ("WAITING", "RUNNING"))
    filled = BAR_CHARACTERS * ended // sweep.total if sweep.total else 0
    bar = "█" * filled + "·" * (BAR_CHARACTERS - filled)
    counts = [f"{sweep.counts[state]} {state.lower()}" for state in TrialState if sweep.counts.get(state)]
    left = f"about {duration(sweep.eta_seconds)} left" if sweep.eta_seconds is not None else ""
    facts = [", ".join(counts), left, sweep.best and f"best: {sweep.best}", sweep.trouble]
    said = "".join(f"; {fact}" for fact in facts if fact)
    return f"sweep {sweep.name} of {who} {sweep.state} [{bar}] {ended}/{sweep.total}{said}"


def _model(model: ModelState, who: str, names: dict[str, str]) -> str:
    speed = _or_none(model.tokens_per_second, "{:.1f} tokens/s")
    stages = [f"{names.get(id, id)} has layers {start} to {end - 1}" for id, (start, end) in model.stages]
    spares = ", ".join(names.get(id, id) for id in model.spares)
    facts = "; ".join(
        [f"{speed}, {_count(model.requests, 'request')}", *stages, *([f"spare: {spares}"] if spares else [])]
    )
    return f"model {model.name} of {who} {model.state}: {facts}"


# words


def duration(seconds: float) -> str:
    """``"12 s"``, ``"3 min"``, ``"2 h 5 min"``: as exact as a picture that may be old."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _or_none(number: float | None, form: str) -> str:
    return NOT_KNOWN if number is None else form.format(number)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _html_of(value: Value) -> str:
    if value.fraction is None:
        return html.escape(value.text)
    # the number stands beside the bar, so that nothing is lost where a sanitiser takes the bar away
    bar = f"<meter value='{value.fraction:.2f}' style='width:4em' aria-hidden='true'></meter>"
    return f"{bar} {html.escape(value.text)}"


def _brief(name: str) -> str:
    name = next((name.removeprefix(maker) for maker in MAKERS if name.startswith(maker)), name)
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"


def _fitted(line: str) -> str:
    return line if len(line) <= LINE_CHARACTERS else f"{line[: LINE_CHARACTERS - 1]}…"


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(text, LINE_CHARACTERS, subsequent_indent="  ")
