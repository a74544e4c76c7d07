"""The embedded pool: how it starts, what it opens to the world, and that it is gone when its notebook is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from notebook import Notebook, listens_on

GONE_SECONDS = 10.0


def pool_processes(notebook: Notebook) -> list[psutil.Process]:
    """Machine, head, workers, fork server and ranks."""
    found = notebook.descendants()
    assert len(found) >= 7
    return found


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=GONE_SECONDS)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


RANKS = "%%pool\nimport subprocess\nsubprocess.Popen(['sleep', '600'])"


@pytest.fixture
def running(notebook: Notebook) -> Notebook:
    """For tests that end it."""
    notebook.ok("import kalavai_nb as kn\npool = kn.Pool(quiet=True)")
    notebook.ok(RANKS)
    return notebook


@pytest.fixture
def lasting(shared: Notebook) -> Notebook:
    """One with ranks, for tests that leave it as it was."""
    shared.ok(RANKS)
    return shared


def test_the_pool_is_gone_when_its_kernel_is_killed(running: Notebook) -> None:
    processes = pool_processes(running)
    running.kill()
    assert_gone(processes)


def test_the_pool_is_gone_when_its_kernel_is_killed_while_ranks_hold_the_gil(running: Notebook) -> None:
    # what is printed leaves by a thread that needs the GIL, too
    request = running.begin(
        "%%pool\nimport ctypes, time\nprint('begun', flush=True)\ntime.sleep(2)\nctypes.PyDLL(None).sleep(600)"
    )
    running.wait_for_text(request, "begun")
    processes = pool_processes(running)
    running.kill()
    assert_gone(processes)


def test_the_pool_is_gone_when_its_kernel_is_restarted_or_closed(running: Notebook) -> None:
    processes = pool_processes(running)
    running.manager.restart_kernel()
    assert_gone(processes)
    running.client.wait_for_ready(timeout=60)
    running.ok("%load_ext kalavai_nb")
    running.ok("%%pool\nrank")
    processes = pool_processes(running)
    running.manager.shutdown_kernel()
    assert_gone(processes)


def test_close_leaves_no_scratch_is_idempotent_and_what_follows_says_so(running: Notebook) -> None:
    (directory,) = {
        file.path.rsplit("/w-", 1)[0]
        for process in running.descendants()
        for file in process.open_files()
        if "/rank-" in file.path
    }
    assert Path(directory).is_dir()
    assert Path(directory).stat().st_mode & 0o777 == 0o700
    running.ok("pool.close()")
    assert not Path(directory).exists()
    running.ok("pool.close()")
    assert "this pool is closed; open a new one with kn.Pool()" in running.run("pool.devices").traceback
    assert "4 CPU stand-ins (this machine has no GPU)" in running.ok("%%pool\npass").stream()


def test_it_listens_on_loopback_alone_and_on_nothing_but_tls(lasting: Notebook) -> None:
    listening = [
        connection.laddr
        for process in lasting.descendants()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ]
    assert listening
    assert {address.ip for address in listening} == {"127.0.0.1"}
    for port in {address.port for address in listening}:
        # neither HTTP nor Dask without TLS gets a word out of any port
        with pytest.raises((urllib.error.URLError, OSError)):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=1)


def test_a_stranger_without_a_certificate_is_refused(lasting: Notebook) -> None:
    address = lasting.ok("pool.engine.address").displays[0]["text/plain"].strip("'")
    source = (
        "import asyncio, ssl, sys\n"
        "host, port = sys.argv[1].split('://')[1].split(':')\n"
        "context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE\n"
        "async def main():\n"
        "    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)\n"
        "    writer.write(b'x' * 100); await writer.drain()\n"
        "    assert await asyncio.wait_for(reader.read(1), 10)\n"
        "asyncio.run(main())\n"
    )
    refused = subprocess.run(
        [sys.executable, "-c", source, address], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode != 0
    assert "CERTIFICATE_REQUIRED" in refused.stderr or "AssertionError" in refused.stderr or "Reset" in refused.stderr


def test_a_second_notebook_connects_by_invite_and_is_told_when_the_head_ends(running: Notebook) -> None:
    invite = running.ok("pool.invite(role='user', expires='10m')").displays[0]["text/plain"].strip("'")
    with Notebook() as second:
        second.ok("%load_ext kalavai_nb")
        assert "4 CPU stand-ins" in second.ok(f"%pool connect {invite}").stream()
        assert "runs" in second.ok("%pool").text or "idle" in second.ok("%pool").text
        assert "cut off" in second.run(f"%pool connect {invite[:-10]}").traceback
        assert "no pool called 'hello' is known here" in second.run("%pool connect hello").traceback
        running.ok("pool.close()")
        deadline = time.monotonic() + 30
        while (cell := second.run("%%pool\npass")).status == "ok" and time.monotonic() < deadline:
            pass
        assert "PoolClosed" in cell.traceback


def test_an_owner_that_vanishes_gives_its_devices_back(lasting: Notebook) -> None:
    lasting.ok("%pool restart")
    invite = lasting.ok("pool.invite()").displays[0]["text/plain"]
    second = Notebook()
    second.ok(f"%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool({invite})")
    request = second.begin("%%pool\nprint('begun', flush=True)\nimport time\ntime.sleep(600)")
    second.wait_for_text(request, "begun")
    second.kill()
    assert "[0-3] 4" in lasting.ok("%%pool\nprint(world_size)", timeout=60).stream()
    second.close()


def test_a_forked_child_of_the_notebook_does_not_close_the_pool(lasting: Notebook) -> None:
    lasting.ok("import os\npid = os.fork()\nif pid == 0:\n    pool.close(); os._exit(0)\nos.waitpid(pid, 0)")
    lasting.ok("%%pool\nrank")


@pytest.mark.slow
def test_a_worker_that_stands_still_is_missed_as_soon_as_its_time_is_over(running: Notebook) -> None:
    """Dask's own look comes once in that time, and would miss it after up to 30 s."""
    address = running.ok("print(pool.devices[0].worker)").stream().strip()
    worker = next(process for process in running.descendants() if listens_on(process, address))
    worker.suspend()
    took = running.ok(
        "import time\nbegan = time.monotonic()\nwhile len(pool.devices) == 4: time.sleep(0.1)\n"
        "print(time.monotonic() - began)"
    ).stream()
    worker.resume()
    assert float(took) < 19


def test_it_works_in_a_plain_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import kalavai_nb as kn\n"
        "def square(x):\n    return x * x\n"
        "if __name__ == '__main__':\n"
        "    with kn.Pool(devices=2, quiet=True) as pool:\n"
        "        print(pool.run('print(rank)\\nx = rank', out=['x']))\n"
        "        print(pool.run(square, 3))\n"
        "        print(pool.map(square, [1, 2, 3], show=False).values)\n"
        "        try:\n            pool.run('1/0')\n"
        "        except ZeroDivisionError as error:\n            print('caught', error, len(error.__notes__))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == ["{'x': [0, 1]}", "[9, 9]", "[1, 4, 9]", "caught division by zero 1"]


def test_equal_content_of_two_notebooks_stays_until_neither_counts_on_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nimport kalavai_nb as kn\n"
        "with kn.Pool(devices=2, quiet=True) as ada, kn.Pool(ada.invite(), quiet=True) as eve:\n"
        "    x = np.ones(200_000)\n"
        "    for pool in (ada, eve):\n        pool.run('x', gpus=1)\n"
        "    x = np.zeros(200_000)\n"
        "    ada.run('x', gpus=1)\n"
        "    x = np.ones(200_000)\n"
        "    eve.restart()\n"
        "    print(eve.run('y = float(x.sum())', gpus=1, out=['y']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["{'y': [200000.0]}"], done.stderr


def test_what_is_told_as_the_connection_ends_is_lost_without_a_word(tmp_path: Path) -> None:
    """Another pool of the same process was closed, and with it the head: Dask would print its tracebacks."""
    script = tmp_path / "script.py"
    script.write_text(
        "import kalavai_nb as kn\n"
        "from kalavai_nb.errors import PoolClosed\n"
        "with kn.Pool(devices=1, quiet=True) as pool, kn.Pool(pool.invite(), quiet=True) as other:\n"
        "    client = other.engine._client\n"
        "    def cut():\n"
        "        client.scheduler_comm.send({'op': 'kn_tell', 'messages': []})\n"
        "        client.scheduler_comm.comm.abort()\n"
        "        client._send_to_scheduler_safe({'op': 'kn_tell', 'messages': []})\n"
        "    client.loop.add_callback(cut)\n"
        "    try:\n"
        "        while True:\n            other.snapshot()\n"
        "    except PoolClosed as error:\n"
        "        print('told:', error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("told: the ")


def test_snapshot_is_plain_json(lasting: Notebook) -> None:
    text = lasting.ok("import json\nprint(json.dumps(pool.snapshot().to_dict()))").stream()
    snapshot = json.loads(text)
    assert [device["kind"] for device in snapshot["devices"].values()] == ["cpu"] * 4
    assert len(snapshot["leases"]) == 4


def test_no_devices_are_refused(shared: Notebook) -> None:
    cell = shared.run("kn.Pool(devices=0)")
    assert "devices=0" in cell.traceback
