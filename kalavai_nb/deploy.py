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
import threading
from dataclasses import asdict
from typing import Any

from kalavai_nb.errors import PoolClosed, revived
from kalavai_nb.identity import Identity
from kalavai_nb.ledger import AWAY_SECONDS
from kalavai_nb.machine import Order
from kalavai_nb.security import Authority
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
        self._pool, self.authority = pool, Authority(pool)
        self._gate: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        head = self.authority.issue("head", listens=True)
        worker = self.authority.issue("worker:local", listens=True)
        order: Order = {
            "head": {
                "pool": pool,
                "host": "127.0.0.1",
                "port": 0,
                "idle_seconds": idle_seconds,
                "away_seconds": AWAY_SECONDS,
                "identity": asdict(head),
                "denied": [],
            },
            "address": "",
            "identity": asdict(worker),
            "devices": [asdict(device) for device in devices],
            "contacts": {},
            "leaving": {},
            "limits": {},
            "proxy": 0,
            "agent": "",
            "listens": False,
            "cwd": os.getcwd(),
            # stand-ins of one machine are alike, and a notebook that has just begun wants the processor itself
            "measure": any(device.kind != "cpu" for device in devices),
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
        self._address = str(json.loads(line)["address"])
        return self._address

    def identity(self, name: str, seconds: float = 30 * 86400) -> Identity:
        """A certificate for a user of this pool."""
        return self.authority.issue(name, listens=False, seconds=seconds)

    def invite(self, seconds: float, uses: int, stay_seconds: float) -> str:
        """An invite for other notebooks of this machine. The first one opens a gate for them, on loopback."""
        asked = {"role": "user", "seconds": seconds, "uses": uses, "stay_seconds": stay_seconds}
        with self._turn:
            if self._gate is None:
                self._gate = self._open_gate()
            reply = _ask(self._gate, asked)
        if "error" in reply:
            raise revived(reply["kind"], reply["error"])
        return str(reply["invite"])

    @property
    def pid(self) -> int:
        """The machine's process; head, workers and ranks are its descendants."""
        return self._machine.pid

    def close(self) -> None:
        """End all of it. Idempotent."""
        if self._log.closed:
            return
        for process in (self._gate, self._machine):
            if process:
                _end(process)
        self._log.close()

    def _open_gate(self) -> subprocess.Popen[bytes]:
        gate = subprocess.Popen(
            [sys.executable, "-m", "kalavai_nb.gate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        head_port = int(self._address.rpartition(":")[2])
        _ask(gate, {"pool": self._pool, "authority": self.authority.dump(), "head_port": head_port})
        return gate


def _ask(process: subprocess.Popen[bytes], asked: dict[str, Any]) -> dict[str, Any]:
    """One line to a process, one line back. Raises PoolClosed where none comes."""
    assert process.stdin
    assert process.stdout
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if ready else b""
    if not line:
        raise PoolClosed("the gate of the embedded pool does not answer; kn.Pool() opens a new one.")
    reply: dict[str, Any] = json.loads(line)
    return reply


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    assert process.stdout
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
