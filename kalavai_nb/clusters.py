"""Dask clusters that others started, as pools: the ledger and a host for each worker are installed there as plugins.

Any cluster will do that has an address and a security, or gives a client: LocalCluster, SSHCluster, those of
dask-jobqueue, dask-kubernetes, dask-cuda, Coiled. The first owner installs the plugins; they stay, since others may
have come meanwhile, and the cluster is whoever's it is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from kalavai_nb.engine import Engine
from kalavai_nb.errors import KalavaiError, PoolClosed
from kalavai_nb.identity import Identity
from kalavai_nb.security import Authority

SCHEMES = ("tls://", "tcp://", "ws://", "wss://", "ucx://", "ucxx://", "gateway://", "inproc://")
PACKAGE = "kalavai-nb"
CONNECT_SECONDS = 30.0
ARRIVE_SECONDS = 30.0
LOOK_SECONDS = 0.05
# all of them, and as long as an authority of ours: a cluster may live on
IDENTITY_SECONDS = 365 * 86400.0
MOST_NAMED = 3


def is_address(text: object) -> bool:
    """Whether this is the address of a scheduler of Dask, and no invite."""
    return isinstance(text, str) and text.startswith(SCHEMES)


def connect(cluster: Any, security: Any, label: str, idle_seconds: float) -> tuple[Engine, list[str]]:
    """An owner's connection to the pool on this cluster (an object, or an address), which becomes one if it is none.

    Returned beside it are sentences about what is different there. Raises KalavaiError where it cannot be used as a
    pool, and PoolClosed where it does not answer.
    """
    client = _client(cluster, security)
    address = client.scheduler.address
    try:
        versions = client.get_versions(packages=[PACKAGE])
        missing = _missing(address, versions)
        _install(client, _name(cluster, address), idle_seconds)
        entry = client.sync(client.scheduler.kn_enter, role="user")
        problems = _arrived(client, missing)
        engine = Engine(address, Identity(**entry["identity"]), label, client=client)
    except BaseException as error:
        client.close(timeout=5)
        if isinstance(error, OSError):
            raise PoolClosed(f"the scheduler at {address} ended while the pool was made: {error}") from None
        raise
    remarks = (_differences(cluster, client, entry), _problems(problems), _other_versions(versions))
    return engine, [remark for remark in remarks if remark]


def _client(cluster: Any, security: Any) -> Any:
    from distributed import Client

    address = cluster if isinstance(cluster, str) else getattr(cluster, "scheduler_address", None)
    if address is None and not hasattr(cluster, "get_client"):
        raise KalavaiError(
            f"this is no cluster of Dask: wanted an object with scheduler_address and security, or with get_client(), "
            f"got {type(cluster).__name__}. kn.Pool('tls://host:port', security=…) takes an address."
        )
    if isinstance(address, str) and address.startswith("inproc://"):
        raise KalavaiError(
            "the workers of this cluster are threads of this very process, where user code can be neither stopped nor "
            "kept apart. Wanted workers with processes: LocalCluster(processes=True), or kn.Pool() without a cluster."
        )
    if isinstance(address, str) and not is_address(address):
        raise KalavaiError(f"the cluster is not connected to a scheduler: its address is {address!r}. Start it first.")
    options: dict[str, Any] = {"set_as_default": False, "direct_to_workers": False}
    try:
        if address is None:
            return cluster.get_client()
        if not isinstance(cluster, str):
            security = security or getattr(cluster, "security", None)
        return Client(address, security=security, timeout=CONNECT_SECONDS, name="kalavai", **options)
    except (OSError, TimeoutError) as error:
        raise PoolClosed(
            f"the scheduler at {address} does not answer ({error}). Is the cluster up, can this machine reach it, and "
            "is security= the one it was started with?"
        ) from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise KalavaiError(
            f"a client of Dask cannot be made for {address or type(cluster).__name__}: {error}. For tls:// it needs "
            "security=distributed.Security(…) with the cluster's certificates."
        ) from None


def _install(client: Any, name: str, idle_seconds: float) -> None:
    """Both plugins, where they are not there already: the scheduler leaves a ledger that it has as it is."""
    from kalavai_nb.head.cluster import ClusterLedgerPlugin
    from kalavai_nb.worker.lender import Lender

    authority = Authority(name)
    identities = {
        "user": authority.issue("user:all", listens=False, seconds=IDENTITY_SECONDS),
        "worker": authority.issue("worker:all", listens=True, seconds=IDENTITY_SECONDS),
    }
    client.register_plugin(ClusterLedgerPlugin(name, identities, idle_seconds))
    # a worker that left while it was told; the others were told at the same time
    with contextlib.suppress(OSError):
        client.register_plugin(Lender())


def _arrived(client: Any, missing: list[str]) -> dict[str, str]:
    """Why workers lend nothing, when each of those that are there has said whether it does."""
    deadline = time.monotonic() + ARRIVE_SECONDS
    while True:
        answers: dict[str, str | None] = client.sync(client.scheduler.kn_arrivals)
        answers |= {worker: f"{PACKAGE} is not installed there" for worker in missing if worker in answers}
        late = [worker for worker, answer in answers.items() if answer is None]
        if not late or time.monotonic() > deadline:
            answers |= dict.fromkeys(late, f"has not answered within {ARRIVE_SECONDS:.0f} s")
            return {worker: why for worker, why in answers.items() if why}
        time.sleep(LOOK_SECONDS)


def _missing(scheduler: str, versions: Mapping[str, Any]) -> list[str]:
    """The workers without our package. Raises KalavaiError where the scheduler or all of them have none."""
    here = metadata.version(PACKAGE)
    fix = f"pip install {PACKAGE}=={here}, there and on all workers (in the image or environment that they start from)"
    if not _version(versions["scheduler"]):
        raise KalavaiError(
            f"the scheduler at {scheduler} has no {PACKAGE}, which the pool's ledger there needs: {fix}."
        )
    missing = [worker for worker, found in versions["workers"].items() if not _version(found)]
    if missing and len(missing) == len(versions["workers"]):
        raise KalavaiError(f"none of the cluster's {len(missing)} workers has {PACKAGE}: {fix}.")
    return missing


def _version(found: Mapping[str, Any]) -> str | None:
    version: str | None = found["packages"].get(PACKAGE)
    return version


def _other_versions(versions: Mapping[str, Any]) -> str:
    """Which of its processes have another Python or another version of ours than this one."""
    here = _told(versions["client"])
    others = Counter(_told(found) for found in versions["workers"].values() if _version(found))
    differing = {told: count for told, count in others.items() if told != here}
    head = _told(versions["scheduler"])
    said = [f"{count} of its workers have {told}" for told, count in differing.items()]
    said += [f"its scheduler has {head}"] if head != here else []
    return f"versions differ, so functions may not run there: {'; '.join(said)}; here is {here}." if said else ""


def _told(found: Mapping[str, Any]) -> str:
    # code travels between patches of one Python, not between minors
    python = ".".join(found["host"]["python"].split(".")[:2])
    return f"Python {python} with {PACKAGE} {_version(found)}"


def _differences(cluster: Any, client: Any, entry: Mapping[str, Any]) -> str:
    """What cannot be had there, and what to mind, in one line."""
    ttl = entry["frozen_after_seconds"]
    frozen = f"a frozen worker is noticed after {ttl:g} s" if ttl else "a frozen worker is never noticed"
    said = [
        "this Dask cluster stays its owner's: no invites, no limits of lenders, other Dask tasks on it are not seen, "
        f"and {frozen}."
    ]
    if getattr(cluster, "_adaptive", None) is not None:
        said.append(
            "Its adaptive scaling sees Dask tasks alone and takes workers that run cells: use cluster.scale(n)."
        )
    if not client.scheduler.address.startswith(("tls://", "wss://", "gateway://")) and not _is_loopback(client):
        said.append("It has no TLS: anybody who reaches its port can run code on it.")
    return " ".join(said)


def _is_loopback(client: Any) -> bool:
    host = urlsplit(client.scheduler.address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _problems(problems: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for worker, why in problems.items():
        by_reason.setdefault(why, []).append(worker)
    parts: list[str] = []
    for why, workers in by_reason.items():
        named = ", ".join(workers[:MOST_NAMED]) + (" …" if len(workers) > MOST_NAMED else "")
        parts.append(f"{named}: {why}")
    return f"{len(problems)} of its workers lend nothing: {'; '.join(parts)}." if problems else ""


def _name(cluster: Any, address: str) -> str:
    kind = "Dask cluster" if isinstance(cluster, str) else type(cluster).__name__
    return f"{kind} at {urlsplit(address).netloc}"
