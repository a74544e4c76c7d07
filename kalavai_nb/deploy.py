"""The embedded pool: a head and this machine's devices, in processes of their own, for as long as this process lives.

They get a session of their own, since ■ sends SIGINT to the kernel's whole process group, and they watch this process:
by the pipe to their standard input, and by the id of their parent. So they are gone when it is, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import asdict

from kalavai_nb.errors import PoolClosed
from kalavai_nb.machine import Order
from kalavai_nb.security import Authority, Identity
from kalavai_nb.state import Device

START_SECONDS = 60.0
CLOSE_SECONDS = 9.0


class EmbeddedPool:
    """The processes of an embedded pool. ``start`` returns at once, ``wait`` when the head listens."""

    def __init__(self, pool: str, devices: list[Device], idle_seconds: float) -> None:
        self._log = tempfile.TemporaryFile(prefix="kalavai-log-")
        self._machine = subprocess.Popen(
            [sys.executable, "-m", "kalavai_nb.machine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.authority = Authority(pool)
        head = self.authority.issue("head", listens=True)
        worker = self.authority.issue("worker:local", listens=True)
        order: Order = {
            "head": {
                "pool": pool,
                "host": "127.0.0.1",
                "port": 0,
                "idle_seconds": idle_seconds,
                "identity": asdict(head),
            },
            "address": "",
            "identity": asdict(worker),
            "devices": [asdict(device) for device in devices],
            "cwd": os.getcwd(),
        }
        assert self._machine.stdin
        self._machine.stdin.write(json.dumps(order).encode() + b"\n")
        self._machine.stdin.flush()

    def wait(self) -> str:
        """The head's address. Raises PoolClosed, with what it said, where the head does not start."""
        assert self._machine.stdout
        ready, _, _ = select.select([self._machine.stdout], [], [], START_SECONDS)
        line = self._machine.stdout.readline() if ready else b""
        if not line:
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace")
            self.close()
            raise PoolClosed(f"the embedded pool did not start within {START_SECONDS:.0f} s. It said:\n{said}")
        address: str = json.loads(line)["address"]
        return address

    def identity(self, name: str, seconds: float = 30 * 86400) -> Identity:
        """A certificate for a user of this pool."""
        return self.authority.issue(name, listens=False, seconds=seconds)

    @property
    def pid(self) -> int:
        """The machine's process; head, workers and ranks are its descendants."""
        return self._machine.pid

    def close(self) -> None:
        """End all of it. Idempotent."""
        if self._log.closed:
            return
        assert self._machine.stdin
        assert self._machine.stdout
        with contextlib.suppress(OSError):
            self._machine.stdin.close()
        try:
            self._machine.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._machine.kill()
            self._machine.wait()
        self._machine.stdout.close()
        self._log.close()
