"""A process forked from the fork server, also by a worker that others started and that stays as they want it.

Under one of Dask's nannies, that is a daemon, which multiprocessing lets have no children; and it has a main module,
the user's script maybe, which multiprocessing runs again in each child.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from typing import Any

NAME = "kalavai-child"

_context = multiprocessing.get_context("forkserver")
_lock = threading.Lock()
_starting = 0
_daemon: bool | None = None


def begun(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that runs ``target``. This one does not wait for it at its own end: it ends by itself then."""
    process = _context.Process(target=target, args=arguments, name=NAME, daemon=False)
    with _may_have_children():
        process.start()
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return process


def leave_main_module_out() -> None:
    """From now on, children that are begun here do not run the main module of this process again; others do."""
    prepare = spawn.get_preparation_data

    def prepare_ours(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare(name)
        if name == NAME:
            data = {key: value for key, value in data.items() if not key.startswith("init_main")}
        return data

    spawn.get_preparation_data = prepare_ours


@contextlib.contextmanager
def _may_have_children() -> Iterator[None]:
    """For so long, this process is no daemon; threads may start children at the same time."""
    global _starting, _daemon
    config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    with _lock:
        if not _starting:
            _daemon = config.pop("daemon", None)
        _starting += 1
    try:
        yield
    finally:
        with _lock:
            _starting -= 1
            if not _starting and _daemon is not None:
                config["daemon"] = _daemon
