"""What differs between this notebook and the machines of a pool, or is amiss there, and what to do about it.

A machine says its versions when it joins. What would break something is said in one line, before the first use of that
machine; `checkup` lists all, and asks each machine how it is now.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kalavai_nb.engine import Engine
from kalavai_nb.grid import grid_html, grid_text
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device, Link, machine_id

COLUMNS = ("machine", "finding", "what to do")
# what a package is imported as, where that is another word
IMPORTED_AS = {"scikit-learn": "sklearn", "kalavai-nb": "kalavai_nb"}
# packages whose values of one version the other cannot read, and up to which part of the version it matters
BY_MAJOR = {
    "cloudpickle": "functions and classes cannot be sent",
    "numpy": "arrays cannot be sent",
    "pandas": "DataFrames cannot be sent",
}
NOT_COMPARED = ("host", "pid", "executable")
CLOCK_SECONDS = 2.0
CERTIFICATE_SECONDS = 12 * 3600.0
FREE_BYTES = 2 << 30
SLOW_BYTES_PER_SECOND = 5e6
SLOW_RTT_SECONDS = 0.1

Versions = Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """Something about one machine, or the way from it to another. One that ``bites`` breaks what people do."""

    machine: str
    text: str
    fix: str = ""
    bites: bool = False


@dataclass(frozen=True)
class Checkup:
    """All findings, those that bite first. Printed it is a table."""

    findings: tuple[Finding, ...]
    machines: int

    def __repr__(self) -> str:
        return f"{self._title}\n{grid_text(COLUMNS, self._rows)}" if self.findings else self._title

    def _repr_html_(self) -> str:
        return f"<div>{self._title}</div>" + (grid_html(COLUMNS, self._rows) if self.findings else "")

    @property
    def _title(self) -> str:
        count = f"{self.machines} machine{'s' * (self.machines != 1)}"
        said = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}" if self.findings else "all is well"
        return f"{count} compared with this notebook: {said}"

    @property
    def _rows(self) -> list[tuple[str, str, str]]:
        return [(each.machine, each.text, each.fix) for each in self.findings]


class Doctor:
    """Compares this notebook with the machines of a pool; ``say`` shows one line of ours in the cell.

    ``alike`` are machines that need not be compared before they are used.
    """

    def __init__(self, engine: Engine, say: Callable[[str], None], alike: Iterable[str] = ()) -> None:
        self._engine, self._say = engine, say
        self._compared = set(alike)
        self._said: set[str] = set()

    def before_use(self, devices: Iterable[Device]) -> None:
        """Say what will break on machines that were not there before, each once. Asks nobody where there are none."""
        new = {device.machine for device in devices} - self._compared
        if not new:
            return
        self._compared |= new
        here = _here()
        for machine, there in self._engine.versions().items():
            if machine not in new or _is_same(here, there):
                continue
            for finding in compared(here, there, sys.modules):
                if finding.bites and finding.text not in self._said:
                    self._said.add(finding.text)
                    self._say(f"{finding.machine}: {finding.text}; {finding.fix} (%pool doctor lists all)")

    def checkup(self) -> Checkup:
        """Everything, as it is now."""
        snapshot, here = self._engine.snapshot(), _here()
        versions, conditions = self._versions(snapshot), self._engine.conditions()
        findings = [
            finding
            for there in versions.values()
            if not _is_same(here, there)
            for finding in compared(here, there, sys.modules)
        ]
        hosts = {machine: there.get("host", machine) for machine, there in versions.items()}
        for machine, condition in conditions.items():
            findings += conditions_of(hosts.get(machine, machine), condition)
        findings += [*links_of(snapshot.links, hosts), *untimed(snapshot)]
        return Checkup(tuple(sorted(findings, key=lambda finding: not finding.bites)), len(versions))

    def _versions(self, snapshot: Snapshot) -> Mapping[str, Versions]:
        """What machines said when they joined; those that were not ours to start are asked now."""
        said = self._engine.versions()
        others = {device.machine: device.worker for device in snapshot.devices if device.machine not in said}
        replies = self._engine.call([(worker, {"op": "kn_versions"}) for worker in others.values()])
        return {**said, **dict(zip(others, replies, strict=True))}


def compared(here: Versions, there: Versions, used: Container[str]) -> Iterator[Finding]:
    """What differs on a machine; a package that is missing there bites where this notebook has ``used`` it."""
    host = there.get("host", "a machine")
    if "python" not in there:
        yield Finding(host, "does not say which versions it has", "update kalavai-nb there")
        return
    if _part(here["python"], 2) != _part(there["python"], 2):
        minor = _part(here["python"], 2)
        text = f"Python {there['python']} there, {here['python']} here: functions and classes cannot be sent"
        fix = f"join with an environment of Python {minor}, as by `uv venv --python {minor}`"
        yield Finding(host, text, fix, bites=True)
    for name in sorted((here.keys() | there.keys()) - {"python", *NOT_COMPARED}):
        ours, theirs = here.get(name), there.get(name)
        if ours == theirs or ours is None:
            continue
        fix = f"there: {there.get('executable', 'python')} -m pip install '{name}=={ours.partition('+')[0]}'"
        if theirs is None:
            yield Finding(host, f"no {name} there", fix, bites=IMPORTED_AS.get(name, name) in used)
        elif name == "kalavai-nb":
            yield Finding(host, f"{name} {theirs} there, {ours} here: they may misunderstand each other", fix, True)
        elif name in BY_MAJOR and _part(ours, 1) != _part(theirs, 1):
            yield Finding(host, f"{name} {theirs} there, {ours} here: {BY_MAJOR[name]}", fix, True)
        else:
            usually = ": tensors can usually be sent" if name == "torch" else ""
            yield Finding(host, f"{name} {theirs} there, {ours} here{usually}", fix)


def conditions_of(host: str, condition: Mapping[str, Any]) -> Iterator[Finding]:
    """How a machine is, by what it answered."""
    if not condition:
        yield Finding(host, "does not answer", "", bites=True)
        return
    ahead = float(condition["ahead_seconds"])
    if abs(ahead) > CLOCK_SECONDS:
        way = "ahead of" if ahead > 0 else "behind"
        yield Finding(host, f"its clock is {abs(ahead):.0f} s {way} that of the pool's head", "set it there, as by NTP")
    # by its own clock, which the certificate does not know of
    left = float(condition["expires"]) - float(condition["clock"])
    if left < CERTIFICATE_SECONDS:
        fix = "it is renewed while the machine is connected: look at `kalavai-nb status` there"
        yield Finding(host, f"its certificate is good for {max(0.0, left) / 3600:.1f} h more", fix, bites=left <= 0)
    free = float(condition["free_bytes"])
    if free < FREE_BYTES:
        where = condition.get("scratch", "its scratch directory")
        fix = f"make room in {where}, or join with another TMPDIR"
        yield Finding(host, f"{free / 2**30:.1f} GiB are free where files of trials and values go", fix, bites=True)


def links_of(links: Iterable[Link], hosts: Mapping[str, str]) -> Iterator[Finding]:
    """Ways that are slow, and those that machines have to go through the gate."""
    for link in links:
        source, target = hosts.get(link.source, link.source), hosts.get(link.target, link.target)
        if not link.direct:
            fix = f"gangs are kept off this way; let ports 20000 to 31999 of {target} be reached from {source}"
            yield Finding(source, f"cannot dial {target}: what goes there goes through the gate", fix)
        elif (link.bytes_per_second or SLOW_BYTES_PER_SECOND) < SLOW_BYTES_PER_SECOND:
            rate = f"{(link.bytes_per_second or 0.0) / 1e6:.1f} MB/s"
            yield Finding(source, f"the way to {target} is slow: {rate}", "do not split gangs or models over it")
        elif (link.rtt_seconds or 0.0) > SLOW_RTT_SECONDS:
            rtt = f"{1000 * (link.rtt_seconds or 0.0):.0f} ms there and back"
            yield Finding(source, f"the way to {target} is long: {rtt}", "do not split gangs or models over it")


def untimed(snapshot: Snapshot) -> Iterator[Finding]:
    """Devices of other machines of which nobody knows how fast they are."""
    for device in snapshot.devices:
        if device.flops is None and device.machine != machine_id():
            text = f"{device.kind}:{device.index} was not timed: it may not work, or could not be had for half a second"
            yield Finding(device.host, text, "leave, and join again while nothing runs on it")


def _here() -> dict[str, str]:
    from kalavai_nb.worker.host import versions

    return versions()


def _is_same(here: Versions, there: Versions) -> bool:
    """Whether it is this very environment."""
    same = ("host", "executable")
    return all(here.get(name) == there.get(name) for name in same)


def _part(version: str, parts: int) -> str:
    return ".".join(version.split(".")[:parts])
