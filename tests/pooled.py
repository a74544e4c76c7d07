"""A pool over several hosts: ``kalavai-nb`` verbs that go on, with what they say, and notebooks on hosts."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil
from jupyter_client.manager import KernelManager

from hosts import Host, Network, program
from kalavai_nb.lending import local_socket
from notebook import Notebook

Said = dict[str, Any]
KALAVAI = (sys.executable, "-m", "kalavai_nb")
LIMIT_SECONDS = 60.0


class Verb:
    """A verb that goes on, such as ``start`` or ``join``, on a host. ``said`` are its lines of JSON, so far."""

    def __init__(self, host: Host, *words: str) -> None:
        self.host, self.words = host, words
        self.began = time.monotonic()
        self._popen = host.begin([*KALAVAI, *words, "--json"])
        self.said: list[Said] = []
        self._more = threading.Condition()
        self._is_over = False
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for(self, is_it: str | Callable[[Said], bool], limit: float = LIMIT_SECONDS, since: int = 0) -> Said:
        """The first line of this event, or of which this is true, that came after so many others."""
        hit = (lambda line: line.get("event") == is_it) if isinstance(is_it, str) else is_it
        deadline, seen = time.monotonic() + limit, since
        with self._more:
            while True:
                for line in self.said[seen:]:
                    seen += 1
                    if hit(line):
                        return line
                left = deadline - time.monotonic()
                if self._is_over or left <= 0:
                    why = "it has ended" if self._is_over else f"not in {limit:.0f} s"
                    raise TimeoutError(f"{self} did not say {is_it!r} ({why}). It said:\n{self.words_so_far()}")
                self._more.wait(min(left, 1.0))

    def words_so_far(self) -> str:
        """All that it said, for people."""
        lines = [json.dumps(line) for line in self.said[-40:]]
        logs = sorted(self.host.home.glob("program-*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join([*lines, *(log.read_text(errors="replace")[-3000:] for log in logs[-1:])])

    @property
    def process(self) -> psutil.Process:
        return program(self._popen)

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """It is gone at once. What it has started may notice."""
        self.process.kill()
        self._popen.wait()

    def end(self, limit: float = LIMIT_SECONDS) -> int:
        """Wait for its end; its exit status."""
        return self._popen.wait(limit)

    def __repr__(self) -> str:
        return f"kalavai-nb {' '.join(word[:20] for word in self.words)} on {self.host.name}"

    def _listen(self) -> None:
        assert self._popen.stdout
        for line in self._popen.stdout:
            with self._more:
                self.said.append(json.loads(line) if line.startswith("{") else {"event": "", "text": line})
                self._more.notify_all()
        with self._more:
            self._is_over = True
            self._more.notify_all()


def ask(host: Host, *words: str, limit: float = LIMIT_SECONDS) -> Any:
    """What a verb that ends says with ``--json``. Raises RuntimeError with its words where it fails."""
    said = host.run([*KALAVAI, *words, "--json"], limit=limit)
    return json.loads(said) if said.strip() else None


class Desk(Notebook):
    """A kernel on a host. It is reached by unix sockets, since its loopback is not ours."""

    def __init__(self, host: Host, *, log: Path | None = None) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="desk-", dir="/tmp")
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{self._sockets.name}/k")
        assert self.manager.kernel_spec
        # its pids stay those of the test: signals go to the kernel itself
        argv = ["nsenter", "--target", str(host.pid), "--net", "--uts", "--ipc", "--", sys.executable]
        self.manager.kernel_spec.argv[:1] = argv
        self._output = open(log or host.home / "kernel.log", "a")
        self.manager.start_kernel(cwd=str(host.home), env=host.environment, stdout=self._output, stderr=self._output)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self) -> None:
        super().close()
        self._output.close()
        self._sockets.cleanup()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def memory_bytes(processes: list[psutil.Process]) -> int:
    """What these processes have for themselves alone, in all."""
    found = 0
    for process in processes:
        try:
            found += process.memory_full_info().uss
        except psutil.Error:
            continue
    return found


class Execution(NamedTuple):
    """One call of a trial function that notes its calls: its config, the host, and when, by time.monotonic()."""

    config: int
    host: str
    began: float


def executions(log: Path) -> list[Execution]:
    """Each call of a trial function that notes them in this file, in order."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [Execution(int(config), host, float(began)) for config, host, began in lines]


# a trial function that notes each of its executions in a file that all hosts share, since they share the disk
COUNTING = """
def work(x):
    import os, socket, time
    file = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{{x}} {{socket.gethostname()}} {{time.monotonic()}}\\n".encode())
    os.close(file)
    time.sleep({seconds})
    return x * 10
"""


def counting(log: Path, seconds: float) -> str:
    """The source of such a function, ``work``."""
    return COUNTING.format(log=str(log), seconds=seconds)


class Trio:
    """A pool of three hosts with a device each: ``hub`` has the head, ``near`` reaches it and is reached, ``far`` is
    behind a router that lets nothing in. The notebook, ``desk``, is on a fourth that lends nothing.
    """

    def __init__(self, directory: Path) -> None:
        self.network = Network(directory)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.hub, self.near = self.network.host("hub"), self.network.host("near")
        self.far = self.network.host("far", behind_nat=True)
        self.pool = Verb(self.hub, "start", "den", "--devices", "1")
        self.desk_host = self.network.host("desk")
        self.desk = Desk(self.desk_host)
        self.pool.wait_for("ready")
        self.joined = {host.name: self.join(host) for host in (self.near, self.far)}
        for verb in self.joined.values():
            verb.wait_for("lent")
        self.invite = self.new_invite("user", uses=20)
        self.desk.ok("%load_ext kalavai_nb\nimport kalavai_nb as kn, time, numpy as np")
        self.desk.ok(f"pool = kn.Pool({self.invite!r}, quiet=True)")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """What the pool answers its owner."""
        return local_socket.ask(self.hub.home / "kalavai" / "pools" / "den", op, **fields)

    def hosts(self) -> set[str]:
        """Those whose devices are in the pool, as the head itself says."""
        devices: dict[str, Any] = self.ask("snapshot")["devices"]
        return {str(device["host"]) for device in devices.values()}

    def head(self) -> psutil.Process:
        """The process of the head: beside the workers of its machine, but none of them."""
        [worker] = self.desk.value("[device.worker for device in pool.devices if device.host == 'hub']")
        listening = dict(re.findall(r":(\d+) .*pid=(\d+)", self.hub.do("ss", "-Htlnp")))
        pids = {self.hub.inside(int(pid)) for pid in listening.values()}
        pids -= {self.hub.inside(int(listening[worker.rpartition(":")[2]])), self.pool.process}
        [head] = pids
        return head

    def new_invite(self, role: str, uses: int = 1) -> str:
        """The text of a new invite."""
        return str(self.ask("invite", role=role, seconds=7200, uses=uses)["invite"])

    def join(self, host: Host, *words: str) -> Verb:
        """Let this host lend a device."""
        return Verb(host, "join", self.new_invite("worker"), "--devices", "1", *words)

    def close(self) -> None:
        if hasattr(self, "desk"):
            self.desk.close()
        self.network.close()
