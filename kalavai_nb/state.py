"""The nouns that cross floors: frozen, JSON-able, with no behaviour that needs a pool."""

from __future__ import annotations

import reprlib
import socket
import uuid
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # what the function of a sweep returns; where nobody says, it may be anything
    Value = TypeVar("Value", default=Any)
else:
    from typing import TypeVar

    Value = TypeVar("Value")


@dataclass(frozen=True)
class Device:
    """One GPU, or one CPU stand-in where a machine has no GPU.

    ``id`` is unique in the pool, ``index`` counts the devices of one machine, ``selector`` is what
    CUDA_VISIBLE_DEVICES needs (empty for a stand-in). ``worker`` is the Dask address of its worker. ``limits`` says
    what its owner lends of it. ``flops`` (of a matrix product, a second) and ``copy_bytes_per_second`` were measured as
    its machine joined, and are None where they were not. ``kind`` is "cuda", "rocm", "mps" or "cpu", a stand-in.
    """

    id: str
    index: int
    kind: str
    name: str
    host: str
    machine: str
    memory_bytes: int
    selector: str = ""
    worker: str = ""
    limits: str = ""
    flops: float | None = None
    copy_bytes_per_second: float | None = None

    def __str__(self) -> str:
        return f"{self.host} {self.kind}:{self.index}"

    @property
    def torch_name(self) -> str:
        """What ``torch.device`` calls it in a rank that sees this device alone."""
        return {"cuda": "cuda:0", "rocm": "cuda:0", "mps": "mps"}.get(self.kind, "cpu")


@dataclass(frozen=True)
class Link:
    """The way from one machine to another, as it was measured when the later of the two joined.

    ``direct`` is whether the source can dial the target, at ``address``; else what they say goes through the gate.
    ``rtt_seconds`` is of that way; ``bytes_per_second`` is None where it was not measured, as on ways through the gate.
    """

    source: str
    target: str
    direct: bool
    address: str = ""
    rtt_seconds: float | None = None
    bytes_per_second: float | None = None


@dataclass(frozen=True)
class Need:
    """What an owner asks for: ``count`` devices, in groups of ``per`` on one machine, each with ``share`` free.

    Every group becomes a lease of its own, so that a rank can be replaced, grown or taken back by itself. ``wakes`` are
    idle leases of this owner (the ranks that a session has already): their devices come first, in this order.
    ``avoid`` are devices that will not do, such as those of the session's other ranks; ``prefer`` are those it would
    rather have, best first. ``what`` says what the devices are for, such as the name of a sweep. ``connected`` wants
    machines that reach each other, for ranks that talk among themselves.
    """

    owner: str
    count: int
    kind: str = "session"
    per: int = 1
    share: float = 1.0
    type: str = ""
    host: str = ""
    vram_bytes: int = 0
    wakes: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    what: str = ""
    connected: bool = False

    def fits(self, device: Device) -> bool:
        """Whether this device is of the kind that was asked for."""
        names = (device.name.lower(), device.kind)
        type_ok = not self.type or any(fnmatch(name, f"*{self.type.lower()}*") for name in names)
        host_ok = not self.host or fnmatch(device.host, self.host)
        return type_ok and host_ok and device.memory_bytes >= self.vram_bytes and device.id not in self.avoid

    def shares_with(self, lease: Lease) -> bool:
        """Whether this is for the same as that lease, so that neither makes room for the other."""
        return (self.owner, self.what, self.share) == (lease.owner, lease.what, lease.share)

    def __str__(self) -> str:
        filters = {"type": self.type, "host": self.host, "vram": self.vram_bytes and f"{self.vram_bytes / 2**30:g}GB"}
        wanted = " ".join(f"{name}={value}" for name, value in filters.items() if value)
        count = f"{self.share:g} of a device" if self.share < 1 else f"{self.count} device{'s' * (self.count != 1)}"
        return count + (f" with {wanted}" if wanted else "")


@dataclass(frozen=True)
class Lease:
    """The ledger's grant of devices (or a ``share`` of one) to an owner, running or idle since then (Unix time)."""

    id: str
    owner: str
    label: str
    kind: str
    devices: tuple[str, ...]
    share: float
    running: bool
    since: float
    what: str = ""

    @property
    def holder(self) -> str:
        """Who holds it, and what for."""
        return f"{self.label}, {self.what}" if self.what else self.label


@dataclass(frozen=True)
class Waiting:
    """A request in the ledger's queue, with the sentence that says what it waits for."""

    id: str
    owner: str
    label: str
    count: int
    since: float
    reason: str


class TrialState(StrEnum):
    """Where a trial is: WAITING → RUNNING → COMPLETE, FAILED, PRUNED (by ``stop=``) or STOPPED (by a person)."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    PRUNED = "PRUNED"
    STOPPED = "STOPPED"

    def is_finished(self) -> bool:
        """Whether it has ended, well or not; one that was stopped can go on."""
        return self not in (TrialState.WAITING, TrialState.RUNNING)


class Report(NamedTuple):
    """What a trial said by ``trial.report(step, loss=0.3)``: ``Report(step, {"loss": 0.3})``."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, repr=False)
class Trial(Generic[Value]):
    """One call of a sweep's function, as data: an exception is an ``error`` here, not something raised.

    ``index`` is its place among the configs, ``config`` its own, ``state`` a `TrialState`; ``value`` is what the
    function returned, ``log`` what it printed, ``reports`` what it said by ``trial.report``, ``device`` where it ran.
    ``started`` is when the last of its ``attempts`` began (as of ``time.time()``), ``seconds`` how long that took.
    ``directory`` has what it left in ``trial.dir``; ``note`` says what is unusual about it.
    """

    index: int
    state: TrialState
    config: Any
    value: Value | None = None
    error: BaseException | None = None
    seconds: float | None = None
    device: str = ""
    attempts: int = 0
    log: str = ""
    started: float | None = None
    reports: tuple[Report, ...] = ()
    directory: str = ""
    note: str = ""

    def __repr__(self) -> str:
        ended = f" in {self.seconds:.3g} s" if self.seconds is not None else ""
        where = f" on {self.device}{ended}" if self.device else ""
        result = self.error if self.error is not None else self.value
        came = "" if result is None else f" → {brief(result)}"
        return f"<Trial {self.index} {self.state.lower()}{where}: {brief(self.config)}{came}>"


def brief(value: Any) -> str:
    """A config or a value in few characters: floats with five digits, dicts as ``name=value``."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={brief(each)}" for name, each in value.items())[:200]
    if isinstance(value, float):
        return f"{value:.5g}"
    try:
        return reprlib.repr(value)[:60]
    except Exception as error:  # its own code
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def machine_id() -> str:
    """What `Device.machine` is for the devices of this machine: the same in all its processes, and nowhere else."""
    return f"{socket.gethostname()}-{uuid.getnode():012x}"
