"""What Dask is told in the processes of a pool, and the names that its two ends share."""

from __future__ import annotations

CONFIG = {
    # the scheduler keeps this many events per topic and messages per comm: output must not pile up there
    "distributed.admin.low-level-log-length": 8,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # user code runs in children of the workers, so a worker that is silent for so long is gone
    "distributed.scheduler.worker-ttl": "15s",
    # Dask's own NVML sampling crashes on a lost GPU
    "distributed.diagnostics.nvml": False,
    "distributed.comm.timeouts.connect": "10s",
    # no tasks run here, so there is nothing to profile, and no reason to wake up fifty times a second
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


def topic(owner: str) -> str:
    """The event topic on which an owner hears of its leases and the output of its ranks."""
    return f"kalavai/{owner}"
