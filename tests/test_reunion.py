"""A pool whose head is killed and started again: its notebook finds it, and a sweep goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb.reunion import Reunion
from kalavai_nb.worker.rank import free_port

SECONDS = 90


class Started:
    """``kalavai-nb start`` with two stand-ins, in a process of its own."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-m", "kalavai_nb", "start", "lab", "--devices", "2", "--port", str(free_port())]
        listen = ["--json", "--listen", "127.0.0.1", "--uses", "5"]
        self.environment = {**os.environ, "KALAVAI_HOME": str(home)}
        self.process = subprocess.Popen(
            [*command, *listen], stdout=subprocess.PIPE, text=True, env=self.environment, start_new_session=True
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.invites = self.wait_for("ready")["invites"]

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line about this."""
        deadline = time.monotonic() + SECONDS
        while (said := self._lines.get(timeout=deadline - time.monotonic()))["event"] != event:
            pass
        return said

    def head(self) -> psutil.Process:
        """The process that listens as the scheduler: the machine's first child that listens."""
        machine = next(
            each for each in psutil.Process(self.process.pid).children() if "kalavai_nb.machine" in each.cmdline()
        )
        listening = [each for each in machine.children() if each.net_connections("tcp")]
        return min(listening, key=lambda each: each.pid)

    def close(self) -> None:
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)
        self.process.wait(30)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    started = Started(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture
def pool(started: Started) -> Iterator[kn.Pool]:
    with kn.Pool(started.invites["user"]["invite"], quiet=True) as pool:
        yield pool


def wait_until_back(pool: kn.Pool, kill: Any) -> float:
    """Seconds from the loss of the head until the notebook is connected again."""
    kill()
    began = time.monotonic()
    while not pool.engine.is_away:
        assert time.monotonic() - began < SECONDS
        time.sleep(0.01)
    while pool.engine.is_away:
        assert time.monotonic() - began < SECONDS
        time.sleep(0.05)
    assert not pool.engine.closed
    return time.monotonic() - began


def test_a_sweep_goes_on_after_the_head_was_killed(started: Started, pool: kn.Pool, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def work(config: int) -> int:
        with open(f"{folder}/{config}", "a") as file:
            file.write("x")
        time.sleep(0.4)
        return config

    sweep = pool.map(work, range(16), isolate=True, show=False)
    while sum(trial.state.is_finished() for trial in sweep.trials) < 4:
        time.sleep(0.05)
    wait_until_back(pool, started.head().kill)
    assert sweep.values == list(range(16))
    runs = [len(Path(folder, str(config)).read_text()) for config in range(16)]
    # what ran when the head was lost runs once more
    assert sum(runs) <= 16 + 2
    assert max(runs) <= 2


def test_a_cell_is_told_and_the_next_one_waits(started: Started, pool: kn.Pool) -> None:
    assert pool.run(lambda: 1, gpus=2) == [1, 1]
    run = pool.run("import time; time.sleep(60)", gpus=2, async_=True)
    killer = threading.Timer(0.5, started.head().kill)
    killer.start()
    with pytest.raises(kn.errors.RankDied, match="lost with its worker"):
        run.result()
    assert pool.run(lambda: 2, gpus=2) == [2, 2]
    killer.join()


def test_a_pool_that_was_come_to_is_found_by_its_name(started: Started, pool: kn.Pool) -> None:
    with kn.Pool("lab", quiet=True) as again:
        assert len(again.devices) == 2
    with pytest.raises(kn.errors.InviteError, match=r"no pool called 'lub' is known here \(there is: .*lab"):
        kn.Pool("lub")
    with pytest.raises(kn.errors.InviteError, match="this invite is for lending a machine"):
        kn.Pool(started.invites["worker"]["invite"])


def test_the_machine_that_keeps_a_pool_lends_its_devices_once(started: Started) -> None:
    command = [sys.executable, "-m", "kalavai_nb", "join", started.invites["worker"]["invite"]]
    done = subprocess.run(command, env=started.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "this machine keeps the pool lab, and lends it" in done.stderr
    assert "--no-devices" in done.stderr


def test_a_worker_may_not_do_what_is_for_users(started: Started, pool: kn.Pool) -> None:
    """With the certificate of a machine, at the scheduler itself, as somebody on the head's machine could try."""
    from distributed import Client

    from kalavai_nb.security import Authority, dask_security

    authority = Authority.load(Path(started.environment["KALAVAI_HOME"], "pools/lab/authority.pem").read_text())
    port = next(c.laddr.port for c in started.head().net_connections("tcp") if c.status == "LISTEN")
    ports = {c.laddr.port for c in started.head().net_connections("tcp") if c.status == "LISTEN"}
    assert port in ports
    address = pool.engine.address
    worker = authority.issue("worker:m-00000000", listens=True)
    with pytest.raises((OSError, TimeoutError)):
        Client(address, security=dask_security(worker), timeout=5, set_as_default=False)
    user = authority.issue("user:m-00000000", listens=False)
    with Client(address, security=dask_security(user), timeout=20, set_as_default=False) as client:
        assert client.run_on_scheduler(lambda: 1) == 1


def test_who_is_revoked_loses_the_pool_at_once(started: Started, pool: kn.Pool) -> None:
    member = pool._opened._link.member  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "kalavai_nb", "revoke", member, "--json"]
    subprocess.run(command, check=True, env=started.environment, capture_output=True)
    deadline = time.monotonic() + SECONDS
    while "this membership was revoked" not in pool.engine._reunion.reason:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(kn.errors.PoolClosed):
        pool.engine.snapshot(timeout_seconds=1)


class Comm:
    """One end of a connection."""


class Plain:
    """As Dask's client is, as far as it matters here."""

    scheduler_comm: Any = None

    async def _ensure_connected(self, timeout: Any = None) -> None:
        self.scheduler_comm = SimpleNamespace(comm=Comm())


def test_what_dask_says_of_lost_connections_of_others_is_still_heard(caplog: pytest.LogCaptureFixture) -> None:
    client = Reunion(0.0, print, print).client_class(Plain)()  # type: ignore[arg-type]
    asyncio.run(client._ensure_connected())
    logger = logging.getLogger("distributed.batched")
    with caplog.at_level(logging.INFO, "distributed.batched"):
        assert logger.level == logging.INFO
        for about in (client.scheduler_comm.comm, theirs := Comm()):
            logger.info("Batched Comm Closed %r", about)
        logger.error("Error in batched write")
    assert [record.args for record in caplog.records] == [(theirs,), ()]
