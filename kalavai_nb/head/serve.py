"""The process of a head."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from kalavai_nb.head.config import CONFIG
from kalavai_nb.head.desk import Desk
from kalavai_nb.head.door import Door, GuardedScheduler
from kalavai_nb.head.plugin import LedgerPlugin
from kalavai_nb.head.roads import RoadsPlugin
from kalavai_nb.identity import Identity
from kalavai_nb.security import dask_security

# how often it is looked whether a worker has been silent for too long
LOOK_MILLISECONDS = 1000.0


async def serve(
    pool: str,
    host: str,
    port: int,
    idle_seconds: float,
    away_seconds: float,
    identity: Identity,
    denied: Sequence[str],
    desk: Path,
    ready: Callable[[str], None],
) -> None:
    """Run a scheduler with a ledger until SIGTERM; ``ready(address)`` is called when it listens.

    Members whose names are in ``denied`` are not let in. ``desk`` is where the gate beside it asks.
    """
    import dask.config

    with dask.config.set(CONFIG):
        door = Door(denied)
        door.hang()
        GuardedScheduler.door = door
        ledger = LedgerPlugin(pool, identity.pool_id, idle_seconds, away_seconds)
        scheduler = GuardedScheduler(
            protocol="tls",
            host=host,
            port=port,
            security=dask_security(identity),
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            plugins=[ledger, RoadsPlugin(ledger), Desk(desk, door, ledger.kn_snapshot)],
        )
        # Dask looks only once in that time, so that a worker would be missed for up to twice as long
        scheduler.periodic_callbacks["worker-ttl"].callback_time = LOOK_MILLISECONDS
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: asyncio.ensure_future(scheduler.close(reason="told to end"))
        )
        async with scheduler:
            ready(scheduler.address)
            await scheduler.finished()
