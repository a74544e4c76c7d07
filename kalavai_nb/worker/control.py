"""What the machine's process tells a worker while it runs: newer settings, and that its owner wants the device back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from kalavai_nb.identity import Identity
from kalavai_nb.places import write_private
from kalavai_nb.worker.handlers import register
from kalavai_nb.worker.seat import FAILING

IDENTITY = "identity.json"
MOST_CHARACTERS = 300


class Control(WorkerPlugin):
    """Listens at the pipe to the machine's process, and says there how the device is.

    ``on_settings`` gets what has changed of "limits" and "site". A newer identity is used for connections that are
    made from then on, and written into the machine's directory, for those that the worker's children make.
    """

    name = "kalavai-control"

    def __init__(self, pipe: Connection, directory: Path, on_settings: Callable[[dict[str, Any]], None]) -> None:
        self._pipe, self._directory, self._on_settings = pipe, directory, on_settings
        self._grace: asyncio.TimerHandle | None = None
        self._ending: asyncio.Future[None] | None = None

    def setup(self, worker: Worker) -> None:
        self.worker = worker
        register(self, worker)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._hear)

    def is_registered(self) -> None:
        """The head knows this worker."""
        self._say("lent")

    def cannot_start(self, why: str) -> None:
        """The head refuses this worker, or it cannot be a worker at all. Another is tried in a while."""
        if "name taken" in why:
            why = "the pool has this very device already: another account or directory of this machine lends it"
        self._say(f"{FAILING} {why[:MOST_CHARACTERS]}")

    async def teardown(self, worker: Worker) -> None:
        with contextlib.suppress(ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    def kn_drained(self) -> None:
        """Nothing is left here for which the owner would have to wait."""
        self._end()

    # inside

    def _hear(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            return
        if "leaving" in message:
            self._leave(message["leaving"])
        if "identity" in message:
            identity = Identity(**message["identity"])
            self.worker.security.renew(identity)
            write_private(self._directory / IDENTITY, json.dumps(message["identity"]))
        self._on_settings({name: message[name] for name in ("limits", "site") if name in message})

    def _leave(self, leaving: dict[str, Any] | None) -> None:
        if self._grace:
            self._grace.cancel()
            self._grace = None
        if leaving is None:
            self._tell({"op": "kn_stay"})
            self._say("lent")
            return
        self._say("leaving")
        self._tell({"op": "kn_drain", "why": leaving["why"], "grace_seconds": leaving["grace_seconds"]})
        self._grace = asyncio.get_running_loop().call_later(leaving["grace_seconds"], self._end)

    def _end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self.worker.close(reason="its owner takes the device back"))

    def _tell(self, message: dict[str, Any]) -> None:
        # while the worker comes and goes there is no stream to its head
        with contextlib.suppress(CommClosedError, TypeError):
            self.worker.batched_stream.send(message)

    def _say(self, state: str) -> None:
        # the machine's process may be ending, and this one then with it
        with contextlib.suppress(OSError):
            self._pipe.send(state)
