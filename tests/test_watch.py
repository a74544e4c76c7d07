"""Seeing a real pool from outside: its file for the sidebar, orders, and the truth about what is gone."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from notebook import Notebook, listens_on
from nvml import build_stub, change, environment

PATIENCE_SECONDS = 60.0
State = dict[str, Any]


class Seen:
    """The registry files of one runtime directory, as anybody of this user sees them."""

    def __init__(self, runtime: Path) -> None:
        self.directory = runtime / "kalavai_nb"

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.json")) if self.directory.exists() else []

    def entries(self) -> list[State]:
        return [json.loads(file.read_text()) for file in self.files()]

    def wait(self, ready: Callable[[State], Any], patience: float = PATIENCE_SECONDS) -> State:
        """The first entry of which ``ready`` is true."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for entry in self.entries():
                if ready(entry):
                    return entry
            time.sleep(0.05)
        raise TimeoutError(json.dumps(self.entries(), indent=1)[-4000:])

    def order(self, entry: State, verb: str, target: str = "") -> State:
        """Press a button of this entry's notebook: write the order, and wait for what is answered."""
        [file] = [file for file in self.files() if json.loads(file.read_text())["owner"] == entry["owner"]]
        inbox, id = file.with_suffix(".inbox"), secrets.token_hex(8)
        draft = inbox / f".{id}"
        draft.write_text(json.dumps({"id": id, "verb": verb, "target": target}))
        draft.rename(inbox / f"{id}.json")
        reply, deadline = inbox / f"{id}.reply", time.monotonic() + PATIENCE_SECONDS
        while not reply.exists():
            assert time.monotonic() < deadline, "no reply"
            time.sleep(0.02)
        answer: State = json.loads(reply.read_text())
        return answer


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def running(seen: Seen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    env = {"JUPYTER_RUNTIME_DIR": str(seen.directory.parent)}
    with Notebook(cwd=str(tmp_path_factory.mktemp("notebook")), env=env) as notebook:
        notebook.ok("%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)")
        yield notebook


def of(entry: State, kind: str) -> list[State]:
    return list(entry["snapshot"][kind].values())


def test_the_file_is_there_is_private_and_goes_on(running: Notebook, seen: Seen) -> None:
    entry = seen.wait(lambda entry: entry["sequence"] >= 1)
    assert (entry["version"], entry["link"], entry["can_invite"], entry["pid"]) == (1, "live", True, running.pid)
    [file] = seen.files()
    for path, mode in ((file, 0o600), (file.parent, 0o700), (file.with_suffix(".inbox"), 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    later = seen.wait(lambda now: now["sequence"] >= entry["sequence"] + 3)
    assert later["snapshot"]["time"] > entry["snapshot"]["time"] + 1
    assert not any(word in file.read_text() for word in ("tls://", "PRIVATE KEY", "CERTIFICATE"))


def test_readings_come_each_second_also_while_a_cell_is_busy(running: Notebook, seen: Seen) -> None:
    cell = running.begin("%%pool gpus=1\nimport time\nend = time.time() + 20\nwhile time.time() < end: pass")
    busy = seen.wait(lambda entry: any(d.get("reading", {}).get("utilisation", 0) > 0.2 for d in of(entry, "devices")))
    [cell_seen] = of(busy, "cells")
    assert (cell_seen["text"], cell_seen["ranks"]) == ("import time", 1)
    reading = busy["snapshot"]["devices"][cell_seen["devices"][0]]["reading"]
    assert reading["memory_used_bytes"] > 10e6
    assert reading["processes"]
    answer = seen.order(busy, "stop_cell", next(iter(busy["snapshot"]["cells"])))
    assert answer["ok"], answer
    assert "KeyboardInterrupt" in running.finish(cell).error
    seen.wait(lambda entry: not entry["snapshot"]["cells"])


def test_an_idle_session_is_released_by_a_button_and_says_what_went(running: Notebook, seen: Seen) -> None:
    running.ok("%%pool gpus=1\nmarker = 1")
    entry = seen.wait(lambda entry: [lease for lease in of(entry, "leases") if not lease["running"]])
    [lease] = entry["snapshot"]["leases"]
    assert "marker" in seen.order(entry, "release", lease)["text"]
    seen.wait(lambda entry: not entry["snapshot"]["leases"])
    assert seen.order(entry, "release", lease) == {
        "ok": False,
        "text": "this device is free already: there is nothing to release.",
    }
    assert "was released by a button. Lost with it: end, marker, time" in running.ok("%%pool gpus=1\nprint(1)").stream()


def test_a_sweep_is_stopped_while_its_cell_blocks(running: Notebook, seen: Seen) -> None:
    running.ok("def slow(config):\n    import time\n    time.sleep(0.2 if config < 3 else 60)\n    return config")
    cell = running.begin("sweep = pool.map(slow, range(40), name='slow', show=False)\nsweep.wait()")
    entry = seen.wait(lambda entry: any(s["counts"].get("COMPLETE", 0) >= 3 for s in of(entry, "sweeps")))
    [(id, sweep)] = entry["snapshot"]["sweeps"].items()
    assert (sweep["name"], sweep["fn"], sweep["state"], sweep["total"]) == ("slow", "slow", "running", 40)
    assert sweep["eta_seconds"] > 0
    started = time.monotonic()
    answer = seen.order(entry, "stop_sweep", id)
    assert time.monotonic() - started < 15
    assert answer == {"ok": True, "text": "slow is stopped; 3 of 40 trials are done and kept."}
    assert running.finish(cell).status == "ok"
    assert of(seen.wait(lambda entry: of(entry, "sweeps")[0]["state"] != "running"), "sweeps")[0]["state"] == "stopped"


def test_an_invite_is_made_and_lets_another_notebook_in(running: Notebook, seen: Seen) -> None:
    entry = seen.entries()[0]
    invite = seen.order(entry, "invite")["text"]
    with Notebook(env={"JUPYTER_RUNTIME_DIR": str(seen.directory.parent)}) as other:
        other.ok(f"import kalavai_nb as kn\npool = kn.Pool({invite!r}, quiet=True)")
        theirs = seen.wait(lambda entry: entry["pid"] == other.pid)
        assert theirs["snapshot"]["id"] == entry["snapshot"]["id"]
        assert theirs["can_invite"] is False
        assert "only whoever opened it invites others" in seen.order(theirs, "invite")["text"]
        seen.wait(lambda each: each["pid"] == running.pid and len(each["snapshot"]["owners"]) == 2)
        other.ok("import threading\ncell = pool.run('import time; time.sleep(30)', gpus=1, async_=True)")
        shown = seen.wait(lambda each: each["pid"] == running.pid and each["snapshot"]["cells"])
        [(id, cell)] = shown["snapshot"]["cells"].items()
        assert cell["owner"] == theirs["owner"]
        assert "has ended already" in seen.order(shown, "stop_cell", id)["text"], "it is not this notebook's"
        [lease] = [id for id, lease in shown["snapshot"]["leases"].items() if lease["owner"] == theirs["owner"]]
        assert "only that notebook can release it" in seen.order(shown, "release", lease)["text"]
        other.ok("pool.close()")
        seen.wait(lambda each: len(each["snapshot"]["owners"]) == 1)
    assert len(seen.files()) == 1


def test_orders_that_mean_nothing_are_answered(running: Notebook, seen: Seen) -> None:
    [entry] = seen.entries()
    for verb, answer in (("stop_sweep", "no such sweep"), ("close_model", "no such model"), ("explode", "not known")):
        reply = seen.order(entry, verb, "nothing")
        assert not reply["ok"]
        assert answer in reply["text"]


def test_a_worker_that_hangs_is_silent_and_one_that_dies_is_lost(running: Notebook, seen: Seen) -> None:
    workers = running.ok("print(*[d.worker for d in pool.devices])").stream().split()
    worker = next(process for process in running.descendants() if listens_on(process, workers[0]))
    worker.send_signal(signal.SIGSTOP)
    silent = seen.wait(lambda entry: any(alert["kind"] == "silent" for alert in of(entry, "alerts")))
    assert [d for d in of(silent, "devices") if d.get("silent_seconds", 0) >= 3]
    worker.send_signal(signal.SIGCONT)
    seen.wait(lambda entry: not entry["snapshot"]["alerts"])
    worker.kill()
    seen.wait(lambda entry: any(event["kind"] == "lost" for event in entry["snapshot"]["events"]))
    seen.wait(lambda entry: len(entry["snapshot"]["devices"]) == 2 and not entry["snapshot"]["alerts"])


def test_a_head_that_hangs_or_dies_is_told_and_a_new_pool_is_live(running: Notebook, seen: Seen) -> None:
    address = running.ok("print(pool.engine.address)").stream().strip()
    head = next(process for process in running.descendants() if listens_on(process, address))
    head.send_signal(signal.SIGSTOP)
    lost = seen.wait(lambda entry: entry["link"] == "lost")
    assert "has not answered" in lost["reason"]
    head.send_signal(signal.SIGCONT)
    seen.wait(lambda entry: entry["link"] == "live")
    head.kill()
    started = time.monotonic()
    assert seen.wait(lambda entry: entry["link"] == "lost")["reason"]
    assert time.monotonic() - started < 5
    running.ok("pool.close()\npool = kn.Pool(devices=2, quiet=True)")
    new = seen.wait(lambda entry: entry["link"] == "live")
    assert new["snapshot"]["id"] != lost["snapshot"]["id"]
    assert len(seen.files()) == 1, "the file of the lost one is gone"


def test_gpus_are_read_are_lost_and_come_back(seen: Seen, tmp_path: Path) -> None:
    """Through a whole pool: two NVIDIA GPUs of a stub of their driver, of which one falls off the bus for a while."""
    stub = build_stub(tmp_path / "nvml")
    env = environment(stub, utilisation=37, temperature=55, **{"gpu1.utilisation": 90})
    runtime = tmp_path / "runtime"
    with Notebook(env={**env, "JUPYTER_RUNTIME_DIR": str(runtime)}) as notebook:
        notebook.ok(
            "import os\nfor name in [n for n in os.environ if n.endswith('_VISIBLE_DEVICES')]: del os.environ[name]"
        )
        notebook.ok("import kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        ours = Seen(runtime)
        read = ours.wait(lambda entry: all("utilisation" in d.get("reading", {}) for d in of(entry, "devices")))
        assert [device["kind"] for device in of(read, "devices")] == ["cuda", "cuda"]
        assert [device["reading"]["utilisation"] for device in of(read, "devices")] == [0.37, 0.9]
        change(stub, **{"gpu1.lost": 1})
        [alert] = of(ours.wait(lambda entry: entry["snapshot"]["alerts"]), "alerts")
        assert (alert["kind"], "does not answer" in alert["text"]) == ("lost", True)
        assert len(ours.entries()[0]["snapshot"]["devices"]) == 2, "it is still there"
        change(stub, **{"gpu1.lost": None, "utilisation": 50})
        healed = ours.wait(lambda entry: not entry["snapshot"]["alerts"])
        ours.wait(lambda entry: of(entry, "devices")[0]["reading"]["utilisation"] == 0.5)
        assert of(healed, "devices")[1]["reading"]["utilisation"] == 0.9


def test_the_file_goes_with_the_pool_and_a_killed_kernel_leaves_it(running: Notebook, seen: Seen) -> None:
    running.ok("pool.close()")
    assert not list(seen.directory.iterdir())
    running.ok("pool = kn.Pool(devices=1, quiet=True)")
    seen.wait(lambda entry: entry["sequence"] >= 1)
    running.kill()
    psutil.Process(running.pid).wait(30)
    assert len(seen.files()) == 1, "whoever reads it sees that its process is gone"
    assert not psutil.pid_exists(seen.entries()[0]["pid"]) or os.name != "posix"
