"""Dask clusters of others as pools: everything works there, and the cluster goes on as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.config
import psutil
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, Security, SpecCluster

import kalavai_nb as kn
import nvml
from kalavai_nb import clusters
from kalavai_nb.errors import KalavaiError, NotEnoughDevices, OptionError, PoolClosed

PATIENCE_SECONDS = 60.0
ANY_PORT = "127.0.0.1:0"
SUMS = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
total = total.item()
"""


def eventually(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.05)
    return found


def local_cluster(workers: int = 2, **options: Any) -> LocalCluster:
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=ANY_PORT, **options)


def square(number: int) -> int:
    return number * number


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pool(cluster: LocalCluster) -> Iterator[kn.Pool]:
    with kn.Pool(cluster=cluster, quiet=True) as pool:
        yield pool


def test_each_worker_is_a_device(pool: kn.Pool) -> None:
    first, second = pool.devices
    assert (first.kind, first.index, second.index) == ("cpu", 0, 1)
    assert first.id != second.id
    assert first.machine == second.machine
    assert 0 < first.memory_bytes <= psutil.virtual_memory().total // 2


def test_cells_talk_to_each_other_and_keep_their_names(pool: kn.Pool) -> None:
    assert pool.run(SUMS, gpus=2, out=["total"]) == {"total": [3.0, 3.0]}
    assert pool.run("again = total", gpus=2, out=["again"]) == {"again": [3.0, 3.0]}


def test_trials_run_with_what_they_carry(pool: kn.Pool) -> None:
    offset = 1

    def shifted(number: int) -> int:
        return square(number) + offset

    assert list(pool.map(shifted, range(4), show=False)) == [1, 2, 5, 10]


def test_a_model_lies_on_its_workers(pool: kn.Pool, tmp_path: Path) -> None:
    # here, as workers and ranks that import this module for a function need no torch for it
    from tiny_lm import tiny_lm

    with pool.load(tiny_lm(tmp_path), gpus=2, max_len=64, max_batch=1, show=False) as lm:
        assert len(lm.stages) == 2
        first = lm.generate("hello", max_new_tokens=8)
        assert lm.generate("hello", max_new_tokens=8) == first


def test_its_devices_are_seen(pool: kn.Pool) -> None:
    readings = eventually(lambda: len(found := pool.snapshot().readings) == 2 and found)
    assert all(reading.memory_total_bytes for reading in readings.values())


def test_what_is_different_there_is_said_once(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with kn.Pool(cluster=cluster):
        connected, different = capsys.readouterr().out.splitlines()
    assert connected.endswith(f"pool of LocalCluster at {cluster.scheduler_address[6:]}: 2 CPU stand-ins")
    assert "no invites" in different
    assert "other Dask tasks on it are not seen, and a frozen worker is noticed after 300 s" in different
    assert "anybody" not in different, "nobody else reaches the loopback"


def test_other_owners_find_the_ledger_that_is_there(cluster: LocalCluster, pool: kn.Pool) -> None:
    pool.run("kept = 7", gpus=2)
    script = (
        "import sys, kalavai_nb as kn\n"
        "with kn.Pool(sys.argv[1], quiet=True) as pool:\n"
        "    print(pool.engine.pool_id, len(pool.snapshot().owners), sum(pool.run(lambda: 5, gpus=0)))\n"
    )
    command = [sys.executable, "-c", script, cluster.scheduler_address]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = other.communicate(timeout=PATIENCE_SECONDS)[0].split()
    assert said == [pool.engine.pool_id, "2", "10"]
    eventually(lambda: len(pool.snapshot().owners) == 1)


def test_the_cluster_keeps_its_own_work(cluster: LocalCluster, pool: kn.Pool) -> None:
    with Client(cluster, set_as_default=False) as client:
        assert client.gather(client.map(abs, (0, -1, 4), pure=False)) == [0, 1, 4]
        # a signal to this process's group, such as that of ■, is none to them
        groups = client.run(os.getpgrp)
    assert os.getpgrp() not in groups.values()


def test_a_worker_that_dies_comes_back_as_a_device(cluster: LocalCluster, pool: kn.Pool) -> None:
    [rank, _] = pool.run(os.getpid, gpus=2)
    before = {device.worker for device in pool.devices}
    worker = psutil.Process(rank).parents()[1]
    worker.kill()
    eventually(lambda: len(now := pool.devices) == 2 and {device.worker for device in now} != before)
    eventually(lambda: not psutil.pid_exists(rank))
    assert pool.run(square, 3, gpus=2) == [9, 9]


def test_a_worker_that_comes_later_is_one_device_more(cluster: LocalCluster, pool: kn.Pool) -> None:
    cluster.scale(3)
    assert eventually(lambda: len(devices := pool.devices) == 3 and devices)[-1].index == 2
    cluster.scale(2)
    eventually(lambda: len(pool.devices) == 2)


def test_closing_the_pool_leaves_the_cluster(cluster: LocalCluster, pool: kn.Pool) -> None:
    # its idle ranks would be taken back after a minute
    pool.restart()
    with kn.Pool(cluster=cluster, quiet=True) as pool:
        workers = {device.worker for device in pool.devices}
        [rank] = pool.run(os.getpid, gpus=1)
    eventually(lambda: not psutil.pid_exists(rank))
    with Client(cluster, set_as_default=False) as client:
        assert set(client.run(os.getpid)) == workers


def test_a_cluster_that_is_closed_leaves_nothing_but_a_sentence() -> None:
    cluster = local_cluster(1)
    pool = kn.Pool(cluster=cluster, quiet=True)
    cell = pool.run("import os, time; time.sleep(5); rank = os.getpid()", gpus=1, out=["rank"], async_=True)
    eventually(lambda: [lease.running for lease in pool.snapshot().leases] == [True])
    # the scheduler sees tasks alone, of which there are none
    cluster.scheduler.idle_timeout = 3.0
    [rank] = cell.result()["rank"]
    cluster.scheduler.idle_timeout = None
    server = psutil.Process(rank).parent()
    assert server
    root = Path(tempfile.gettempdir(), f"kalavai-{os.getuid()}-{pool.engine.pool_id}")
    assert list(root.parent.glob(f"{root.name}*"))
    cluster.close()
    eventually(lambda: pool.engine.closed)
    with pytest.raises(PoolClosed, match=r"has ended\. kn\.Pool\(cluster=…\) connects to another"):
        pool.run("1", gpus=1)
    pool.close()
    eventually(lambda: not psutil.pid_exists(rank) and not server.is_running())
    assert not list(root.parent.glob(f"{root.name}*"))


def test_a_cluster_with_tls_by_its_address(tmp_path: Path) -> None:
    security = Security.temporary()
    with local_cluster(1, security=security) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://")
        with kn.Pool(address, security=security, quiet=True) as pool:
            assert pool.run(square, 3, gpus=1) == [9]
            assert list(pool.map(square, range(3), show=False)) == [0, 1, 4]
        # what dask-kubernetes and Coiled have of a cluster
        with kn.Pool(cluster=SimpleNamespace(scheduler_address=address, security=security), quiet=True) as pool:
            assert len(pool.devices) == 1
        # and dask-gateway
        with kn.Pool(cluster=SimpleNamespace(get_client=cluster.get_client), quiet=True) as pool:
            assert len(pool.devices) == 1
        with pytest.raises(KalavaiError, match="For tls:// it needs security="):
            kn.Pool(address, quiet=True)


def test_no_workers_yet(capsys: pytest.CaptureFixture[str]) -> None:
    with local_cluster(0) as cluster, kn.Pool(cluster=cluster) as pool:
        assert ": no devices yet" in capsys.readouterr().out
        with pytest.raises(NotEnoughDevices):
            pool.run("1", gpus=1, wait=0)
        cluster.adapt(minimum=1, maximum=1)
        eventually(lambda: len(pool.devices) == 1)
        kn.Pool(cluster=cluster).close()
        assert "use cluster.scale(n)" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["inproc", "tcp"])
def test_workers_that_are_threads_are_refused(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    with local_cluster(processes=False, protocol=protocol) as cluster:
        if protocol == "inproc":
            with pytest.raises(KalavaiError, match="threads of this very process"):
                kn.Pool(cluster=cluster)
        else:
            with kn.Pool(cluster=cluster) as pool:
                assert pool.devices == []
            assert "2 of its workers lend nothing: " in (said := capsys.readouterr().out)
            assert "it shares its process with other workers" in said


def test_what_is_no_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KalavaiError, match=r"this is no cluster of Dask: .* got dict"):
        kn.Pool(cluster={"a": 1})
    with pytest.raises(KalavaiError, match="not connected to a scheduler: its address is '<Not Connected>'"):
        kn.Pool(cluster=SimpleNamespace(scheduler_address="<Not Connected>", security=None))
    for wrong in ({"invite": "kalavai://x", "cluster": {}}, {"security": Security()}):
        with pytest.raises(OptionError, match=r"wanted one of kn\.Pool"):
            kn.Pool(**wrong)
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 0.5)
    with pytest.raises(PoolClosed, match=r"scheduler at tcp://127\.0\.0\.1:1 does not answer"):
        kn.Pool("tcp://127.0.0.1:1")


WITHOUT_US = """
import importlib.metadata, importlib.util, sys
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kalavai_nb":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NotHere())
known = importlib.metadata.version
importlib.metadata.version = lambda name: known(name if name != "kalavai-nb" else "not-installed")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("kalavai_nb") else find(name, *rest)
"""


def test_workers_without_us_work_on_and_lend_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_US)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with local_cluster(1) as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-dashboard"]
        workers = []
        try:
            workers.append(subprocess.Popen([*command, "--no-nanny"], env=environment, stderr=subprocess.DEVNULL))
            with Client(cluster, set_as_default=False) as client:
                client.wait_for_workers(2)
                with kn.Pool(cluster=cluster) as pool:
                    assert len(pool.devices) == 1
                said = capsys.readouterr().out
                assert "1 of its workers lend nothing: tcp://" in said
                assert "kalavai-nb is not installed there" in said
                # one that comes when our plugin is among those of the cluster
                workers.append(subprocess.Popen([*command, "--no-nanny"], env=environment, stderr=subprocess.DEVNULL))
                client.wait_for_workers(3, timeout=PATIENCE_SECONDS)
                assert len(client.run(os.getpid)) == 3
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def test_gpus_of_dask_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers see all GPUs, each another one first. Those of a batch system may see the same ones, all alike."""
    stub = nvml.environment(nvml.build_stub(tmp_path), **{"gpu1.mig": 2})
    # what is to be there before Python starts
    early = {f"distributed.nanny.pre-spawn-environ.{name}": stub[name] for name in ("FAKE_NVML", "LD_LIBRARY_PATH")}
    mig = "MIG-00000001-0000-0000-0000-000000000001"
    for lists, selectors in (
        ([f"{mig},0", f"0,{mig}"], [mig, "GPU-00000000"]),
        ([f"0,{mig}", f"0,{mig}"], ["GPU-00000000", mig]),
    ):
        spec = {
            number: {"cls": Nanny, "options": {"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": visible}}}
            for number, visible in enumerate(lists)
        }
        scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ANY_PORT}}
        with (
            dask.config.set(early),
            SpecCluster(spec, scheduler) as cluster,
            kn.Pool(cluster=cluster, quiet=True) as pool,
        ):
            seen = {
                device.selector[: len(mig if "MIG" in device.selector else "GPU-00000000")] for device in pool.devices
            }
            assert seen == set(selectors)
            if lists[0] == lists[1]:
                continue
            visible = pool.run("import os; seen = os.environ['CUDA_VISIBLE_DEVICES']", gpus=2, out=["seen"])
            assert sorted(visible["seen"]) == sorted(device.selector for device in pool.devices)


# of a job on this machine, dask-jobqueue ends the shell and does not wait for it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cluster_of_dask_jobqueue(tmp_path: Path) -> None:
    # importing it takes SIGINT and SIGTERM away from whoever does
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        from dask_jobqueue.local import LocalCluster as JobCluster
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    options = {
        "cores": 1,
        "processes": 1,
        "memory": "1GB",
        "local_directory": str(tmp_path),
        "log_directory": str(tmp_path),
    }
    with JobCluster(**options, scheduler_options={"dashboard_address": ANY_PORT}) as cluster:
        cluster.scale(1)
        with kn.Pool(cluster=cluster, quiet=True) as pool:
            eventually(lambda: len(pool.devices) == 1)
            assert pool.run(square, 3, gpus=1) == [9]


def test_a_cluster_of_ssh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dask.distributed import SSHCluster

    daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if not daemon or not shutil.which("ssh-keygen"):
        pytest.skip("NOT TESTED: SSHCluster, as there is no sshd here (apt-get install openssh-server)")
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    (tmp_path / "allowed").write_text((tmp_path / "mine.pub").read_text())
    (tmp_path / "config").write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/allowed\nStrictModes no\nUsePAM no\nPidFile none\n"
        "ListenAddress 127.0.0.1\n"
    )
    port = free_port()
    with contextlib.suppress(PermissionError):
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [daemon, "-D", "-e", "-f", str(tmp_path / "config"), "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: answers(port))
        options = {"port": port, "client_keys": [str(tmp_path / "mine")], "known_hosts": None}
        with (
            SSHCluster(
                ["127.0.0.1", "127.0.0.1"],
                connect_options=options,
                worker_options={"nthreads": 1, "n_workers": 1},
                # where this test is killed, its processes end by themselves
                scheduler_options={"port": 0, "dashboard_address": ANY_PORT, "idle_timeout": "60 s"},
                remote_python=sys.executable,
            ) as cluster,
            kn.Pool(cluster=cluster) as pool,
        ):
            eventually(lambda: len(pool.devices) == 1)
            assert pool.run(square, 3, gpus=1) == [9]
            is_open = not cluster.scheduler_address.startswith("tcp://127.")
            assert ("It has no TLS: anybody who reaches its port can run code" in capsys.readouterr().out) == is_open
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
