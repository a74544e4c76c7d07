"""The three ways to a pool: open one here, come by an invite, or take the Dask cluster that is there."""

from __future__ import annotations

import time
from typing import Any, Protocol

from kalavai_nb import clusters
from kalavai_nb.announce import count_devices, owner_label, person
from kalavai_nb.deploy import EmbeddedPool
from kalavai_nb.engine import Engine
from kalavai_nb.errors import KalavaiError, NotEnoughDevices, OptionError
from kalavai_nb.link.process import LinkProcess
from kalavai_nb.reunion import import_dask

JOIN_SECONDS = 30.0
# how long a notebook tries to come back to a head that others look after
PATIENCE_SECONDS = 300.0


class Opened(Protocol):
    """A way to a pool: the connection to its head, and what ends with this notebook's use of it.

    ``remarks`` are sentences about it, for whoever opened it. ``pid`` is the process below which is all that ends with
    it; 0 where nothing does.
    """

    engine: Engine
    remarks: list[str]
    can_invite: bool

    @property
    def pid(self) -> int: ...

    def invite(self, role: str, seconds: float, uses: int, stay_seconds: float) -> str: ...

    def close(self) -> None: ...


def opened(invite: str | None, cluster: Any, security: Any, devices: int | None, idle_seconds: float) -> Opened:
    """The way that was meant. Raises KalavaiError where there is none."""
    has_cluster = cluster is not None or clusters.is_address(invite)
    if (cluster is not None and invite is not None) or (security is not None and not has_cluster):
        raise OptionError("wanted one of kn.Pool(invite), kn.Pool(cluster=…) and kn.Pool('tls://…', security=…).")
    if has_cluster:
        return _OfCluster(cluster if cluster is not None else invite, security, idle_seconds)
    return _Embedded(devices, idle_seconds) if invite is None else _Invited(invite)


class _Embedded:
    """A pool of this machine's own devices, which ends with this process."""

    can_invite = True

    def __init__(self, devices: int | None, idle_seconds: float) -> None:
        from kalavai_nb.worker.devices import local_devices

        if devices is not None and (isinstance(devices, bool) or not isinstance(devices, int) or devices < 1):
            raise OptionError(f"devices={devices!r} cannot be meant: wanted how many devices the pool has, 1 or more.")
        local = local_devices(devices)
        label = owner_label()
        self._pool = EmbeddedPool(label, local, idle_seconds)
        try:
            import_dask()  # while the pool starts
            address = self._pool.wait()
            self.engine = Engine(address, self._pool.identity(f"user:{label}"), label)
            self._wait_for(len(local))
        except BaseException:
            self._pool.close()
            raise
        no_gpu = " (this machine has no GPU)" if local[0].kind == "cpu" else ""
        self.remarks = [f"opened an embedded pool: {count_devices(local)}{no_gpu}"]

    @property
    def pid(self) -> int:
        return self._pool.pid

    def invite(self, role: str, seconds: float, uses: int, stay_seconds: float) -> str:
        if role != "user":
            raise KalavaiError(
                "an embedded pool ends with its notebook, and has devices of this machine only; no other can join it. "
                "`kalavai-nb start` makes a pool that others can join."
            )
        return self._pool.invite(seconds, uses, stay_seconds)

    def close(self) -> None:
        self._pool.close()

    def _wait_for(self, count: int) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        while (there := len(self.engine.snapshot().devices)) < count:
            if time.monotonic() > deadline:
                raise NotEnoughDevices(
                    f"{there} of {count} devices joined the pool within {JOIN_SECONDS:.0f} s: this machine may have "
                    "too much to do. Try again, or with fewer: kn.Pool(devices=…)."
                )
            time.sleep(0.02)


class _Invited:
    """A pool that others look after, by a link to its gate."""

    def __init__(self, invite: str) -> None:
        self._link = LinkProcess(invite, person())
        try:
            import_dask()
            address, identity, proxy = self._link.address, self._link.identity, self._link.proxy
            patience = PATIENCE_SECONDS if self._link.stays else 0.0
            label = f"{person()}, {owner_label()}"
            self.engine = Engine(address, identity, label, patience_seconds=patience, proxy=proxy)
        except BaseException:
            self._link.close()
            raise
        # shown for connections that are made from then on
        self._link.on_renewed = self.engine.renew
        self._link.on_end = self.engine.give_up
        self.can_invite = self._link.may_invite
        self.remarks = [_connected(self.engine)]

    @property
    def pid(self) -> int:
        return self._link.pid

    def invite(self, role: str, seconds: float, uses: int, stay_seconds: float) -> str:
        return self._link.invite(role, seconds, uses, stay_seconds)

    def close(self) -> None:
        self._link.close()


class _OfCluster:
    """A Dask cluster that others started, and that stays."""

    can_invite = False

    def __init__(self, cluster: Any, security: Any, idle_seconds: float) -> None:
        self.engine, remarks = clusters.connect(cluster, security, owner_label(), idle_seconds)
        self.remarks = [_connected(self.engine), *remarks]

    @property
    def pid(self) -> int:
        return 0

    def invite(self, role: str, seconds: float, uses: int, stay_seconds: float) -> str:
        raise KalavaiError("the cluster is not ours to invite to: whoever looks after it lets others in.")

    def close(self) -> None:
        """The cluster is whoever's it is."""


def _connected(engine: Engine) -> str:
    return f"connected to the pool of {engine.pool}: {count_devices(list(engine.snapshot().devices))}"
