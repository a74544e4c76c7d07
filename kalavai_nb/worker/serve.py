"""A worker process: Dask's worker of one device, thin, with plugins that do what it is for."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kalavai_nb.identity import CurrentIdentity, Identity
from kalavai_nb.roads import Site
from kalavai_nb.security import dask_security
from kalavai_nb.state import Device

# where a worker listens: others come by their machine's link to the gate, and from there
HOST = "127.0.0.1"


async def serve(
    device: Device,
    address: str,
    contact: tuple[int, str] | None,
    devices_here: int,
    directory: Path,
    environment: dict[str, str],
    settings: dict[str, Any],
    pipe: Connection,
) -> None:
    """Run the worker of ``device``, one of so many here, until it is told to end or the head is gone.

    ``contact`` is the port that it listens at and the address that leads there from the head, where that is on another
    machine. ``settings`` have its "identity", and the "limits" and the "site" that plugins get; newer ones come by the
    ``pipe``.
    """
    import dask.config
    from distributed import Worker

    from kalavai_nb.head.config import CONFIG
    from kalavai_nb.worker.control import IDENTITY, Control
    from kalavai_nb.worker.guard import Guard
    from kalavai_nb.worker.host import Host, versions
    from kalavai_nb.worker.roads import Roads

    identity, site = Identity(**settings["identity"]), Site(**settings["site"])
    port, contact_address = contact or (0, None)
    guard = Guard(device, settings["limits"], environment, directory)
    host = Host(device, devices_here, directory, environment, site, identity)

    roads = Roads(site, CurrentIdentity(identity, directory / IDENTITY), directory)

    def on_settings(changed: dict[str, Any]) -> None:
        if "limits" in changed:
            guard.set(changed["limits"])
            host.lend(guard.lent_bytes)
        if "site" in changed:
            roads.site = Site(**changed["site"])
            host.stand(roads.site)

    control = Control(pipe, directory, on_settings)
    fields = asdict(device)
    del fields["worker"]
    with dask.config.set(CONFIG):
        worker = Worker(
            address,
            name=device.id,
            host=HOST,
            port=port,
            contact_address=contact_address,
            nthreads=1,
            memory_limit=0,
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            local_directory=str(directory),
            security=dask_security(identity),
            plugins=[guard, host, roads, control],
            startup_information={
                "device": lambda _: fields,
                "versions": lambda _: versions(),
                "addresses": lambda _: roads.site.addresses(),
            },
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: asyncio.ensure_future(worker.close(reason="told to end"))
        )
        try:
            async with worker:
                control.is_registered()
                await worker.finished()
        except RuntimeError as error:
            control.cannot_start(str(error.__cause__ or error))
            raise
