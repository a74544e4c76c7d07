"""A worker process: Dask's worker of one device, thin, with the host as its plugin."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import asdict
from pathlib import Path

from kalavai_nb.security import Identity
from kalavai_nb.state import Device


async def serve(device: Device, address: str, identity: Identity, directory: Path, environment: dict[str, str]) -> None:
    """Run the worker of ``device`` until it is told to end or the head is gone."""
    import dask.config
    from distributed import Worker

    from kalavai_nb.head import CONFIG
    from kalavai_nb.worker.host import Host

    fields = asdict(device)
    del fields["worker"]
    with dask.config.set(CONFIG):
        worker = Worker(
            address,
            name=device.id,
            host="127.0.0.1",
            nthreads=1,
            memory_limit=0,
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            local_directory=str(directory),
            security=identity.security(),
            plugins=[Host(device, directory, environment)],
            startup_information={"device": lambda _: fields},
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: asyncio.ensure_future(worker.close(reason="told to end"))
        )
        async with worker:
            await worker.finished()
