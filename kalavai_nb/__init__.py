"""Every GPU you and your friends own, in one notebook.

``%load_ext kalavai_nb`` gives a notebook ``%%pool`` and ``%pool``; `Pool` is the same in plain Python. What is where is
said in CONTRIBUTING.md. Importing this loads neither torch nor Dask: names arrive when they are first used.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from IPython.core.interactiveshell import InteractiveShell

    from kalavai_nb.cell import CellRun
    from kalavai_nb.errors import ModelLost, TrialStopped
    from kalavai_nb.lm.generation import Generation
    from kalavai_nb.lm.sharded_lm import ShardedLM
    from kalavai_nb.options import RunOptions
    from kalavai_nb.planner.plan import Plan, plan
    from kalavai_nb.pool import Pool, current_pool
    from kalavai_nb.search.space import loguniform, uniform
    from kalavai_nb.snapshot import Snapshot
    from kalavai_nb.state import Device, Trial, TrialState
    from kalavai_nb.trials.shelf import sweeps
    from kalavai_nb.trials.sweep import Sweep
    from kalavai_nb.values import RemoteValue
    from kalavai_nb.worker.live import LiveTrial

_HOMES = {
    "Pool": "pool",
    "current_pool": "pool",
    "RunOptions": "options",
    "CellRun": "cell",
    "RemoteValue": "values",
    "Sweep": "trials.sweep",
    "sweeps": "trials.shelf",
    "uniform": "search.space",
    "loguniform": "search.space",
    "LiveTrial": "worker.live",
    "TrialStopped": "errors",
    "ModelLost": "errors",
    "Generation": "lm.generation",
    "ShardedLM": "lm.sharded_lm",
    "Plan": "planner.plan",
    "plan": "planner.plan",
    "Trial": "state",
    "TrialState": "state",
    "Device": "state",
    "Snapshot": "snapshot",
}
__all__ = [
    "CellRun",
    "Device",
    "Generation",
    "LiveTrial",
    "ModelLost",
    "Plan",
    "Pool",
    "RemoteValue",
    "RunOptions",
    "ShardedLM",
    "Snapshot",
    "Sweep",
    "Trial",
    "TrialState",
    "TrialStopped",
    "current_pool",
    "loguniform",
    "plan",
    "sweeps",
    "uniform",
]


def _arrive(name: str) -> Any:
    if name == "__version__":
        return metadata.version("kalavai-nb")
    if name in _HOMES:
        return getattr(importlib.import_module(f"kalavai_nb.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# a type checker that saw it would take any misspelt name for one of ours
if not TYPE_CHECKING:
    __getattr__ = _arrive


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """What Jupyter Server asks for: where the extension for the sidebar is."""
    return [{"module": "kalavai_nb.server"}]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%load_ext kalavai_nb`` calls."""
    from kalavai_nb.magics import PoolMagics

    shell.register_magics(PoolMagics)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """What ``%unload_ext kalavai_nb`` calls: the pool ends."""
    from kalavai_nb import pool

    if pool.has_pool():
        pool.current_pool().close()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("pool", None)
