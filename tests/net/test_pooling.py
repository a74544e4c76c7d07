"""Three hosts as one pool, one of them behind a router that lets nothing in: everything works on all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Host
from kalavai_nb.worker.rank import PORTS
from pooled import Trio, Verb, ask, counting, executions
from tiny_lm import tiny_lm

# so fast is a join once everything that it reads was read before
JOIN_SECONDS = 10.0
SCAN = """
import socket, sys
open_ports = []
for port in range(1, 65536):
    with socket.socket() as caller:
        if caller.connect_ex((sys.argv[1], port)) == 0:
            open_ports.append(port)
print(*open_ports)
"""


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    trio = Trio(tmp_path_factory.mktemp("trio"))
    yield trio
    trio.close()


def test_cells_run_on_all_of_them(trio: Trio) -> None:
    trio.desk.ok("%%pool gpus=3 reach=any out=here\nimport socket\nhere = socket.gethostname()")
    assert sorted(trio.desk.value("here")) == ["far", "hub", "near"]


def test_trials_run_on_all_of_them(trio: Trio, tmp_path: Path) -> None:
    trio.desk.ok(counting(tmp_path / "executions", 0.1))
    assert trio.desk.value("pool.map(work, range(30), show=False).values") == [x * 10 for x in range(30)]
    done = executions(tmp_path / "executions")
    assert set(Counter(each.host for each in done)) == {"far", "hub", "near"}
    assert len(done) == 30


def test_a_gang_is_placed_where_its_ranks_reach_each_other(trio: Trio) -> None:
    reduce = """
import socket, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (rank + 1)
dist.all_reduce(total)
total, here = total.item(), socket.gethostname()
dist.destroy_process_group()
"""
    trio.desk.ok("pool.restart()")
    trio.desk.ok(f"%%pool gpus=2 out=total,here\n{reduce}")
    assert trio.desk.value("[total, sorted(here)]") == [[3.0, 3.0], ["hub", "near"]]
    refused = trio.desk.run(f"%%pool gpus=3 wait=3s\n{reduce}")
    assert refused.status == "error"
    assert "far" in refused.error
    assert "reach" in refused.error


def test_a_model_is_spread_over_all_of_them(trio: Trio, tmp_path: Path) -> None:
    path = tiny_lm(tmp_path / "model", num_hidden_layers=6)
    trio.desk.ok("pool.restart()")
    trio.desk.ok(f"lm = pool.load({str(path)!r}, gpus=3, dtype='float32')")
    devices = trio.desk.value("[str(stage.device) for stage in lm.stages]")
    assert {device.split()[0] for device in devices} == {"far", "hub", "near"}
    text = trio.desk.value("lm.generate('who is there?', max_new_tokens=20)")
    trio.desk.ok("lm.close()")
    trio.desk.ok(f"alone = pool.load({str(path)!r}, gpus=1, dtype='float32')")
    assert trio.desk.value("alone.generate('who is there?', max_new_tokens=20)") == text
    trio.desk.ok("alone.close()")


def test_the_panel_shows_all_of_them(trio: Trio) -> None:
    trio.desk.ok("while len(pool.snapshot().links) < 6: time.sleep(0.05)")
    shown = trio.desk.ok("pool.panel(widget=False)").text
    assert all(name in shown for name in ("far", "hub", "near"))
    snapshot = trio.desk.value("pool.snapshot().to_dict()")
    machine = {device["machine"]: device["host"] for device in snapshot["devices"].values()}
    assert sorted(machine.values()) == ["far", "hub", "near"]
    links = trio.desk.value("[vars(link) for link in pool.snapshot().links]")
    direct = {(machine[link["source"]], machine[link["target"]]): link["direct"] for link in links}
    assert direct["near", "hub"]
    assert direct["hub", "near"]
    assert not direct["hub", "far"]
    assert not direct["near", "far"]
    assert ask(trio.near, "status")


def test_from_join_to_the_first_trial(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = trio.network.host("late", behind_nat=True)
    trio.desk.ok(counting(tmp_path / "executions", 0.2))
    trio.desk.ok("pool.restart()\nsweep = pool.map(work, range(400), show=False)")
    joining = trio.join(late)
    joining.wait_for("lent")
    trio.desk.ok(f"while 'late' not in open({str(tmp_path / 'executions')!r}).read(): time.sleep(0.02)")
    first = next(each for each in executions(tmp_path / "executions") if each.host == "late")
    trio.desk.ok("sweep.stop()")
    with capsys.disabled():
        print(f"\nfrom join pressed to the first trial: {first.began - joining.began:.1f} s")
    joining.interrupt()
    assert joining.end() == 0
    assert late.processes() == []
    assert trio.desk.value("sorted({d.host for d in pool.devices})") == ["far", "hub", "near"]
    assert first.began - joining.began <= JOIN_SECONDS


def test_ports_are_those_that_are_stated(trio: Trio) -> None:
    gate = int(trio.pool.wait_for("ready")["port"])
    trio.desk.ok("pool.restart()")
    # machines that have joined just now measure the ways between them
    trio.desk.ok("while len(pool.snapshot().links) < 6: time.sleep(0.05)")
    while (trio.hub.ports() | trio.near.ports()) & set(PORTS):
        time.sleep(0.1)
    assert scan(trio.near, trio.hub) == trio.hub.ports() == {gate}
    assert scan(trio.hub, trio.near) == trio.near.ports() == set()
    assert trio.far.ports() == set()
    # ranks meet at ports of a range that is stated; gloo listens wherever it likes, for as long as its group is there
    trio.desk.ok("%%pool gpus=2\nimport torch.distributed as dist\ndist.init_process_group('gloo')")
    assert (trio.hub.ports() | trio.near.ports()) & set(PORTS)
    assert trio.far.ports() == set()
    trio.desk.ok("pool.restart()")
    assert trio.hub.ports() == {gate}
    assert trio.near.ports() == set()


def scan(source: Host, target: Host) -> set[int]:
    """The TCP ports on which somebody answers."""
    return {int(port) for port in source.python(SCAN, target.address).split()}


def test_a_partition_is_noticed_and_its_machine_comes_back(trio: Trio) -> None:
    trio.near.partition()
    trio.desk.ok("begun = time.monotonic()\nwhile len(pool.devices) == 3: time.sleep(0.05)")
    noticed = trio.desk.value("time.monotonic() - begun")
    trio.near.heal()
    trio.desk.ok("begun = time.monotonic()\nwhile len(pool.devices) < 3: time.sleep(0.05)")
    back = trio.desk.value("time.monotonic() - begun")
    assert noticed <= 12
    assert back <= 30


def test_a_revoked_member_is_cut_off_at_once(trio: Trio) -> None:
    guest = trio.network.host("guest")
    lending = trio.join(guest)
    lent = lending.wait_for("lent")
    revoked = time.monotonic()
    trio.ask("revoke", who=lent["member"])
    assert lending.end() == 2
    assert time.monotonic() - revoked < 10
    assert guest.processes() == []
    assert "revoked" in lending.words_so_far()
    trio.desk.ok("while any(device.host == 'guest' for device in pool.devices): time.sleep(0.05)")
    again = Verb(guest, "join", "den", "--devices", "1")
    assert again.end() == 2
    assert "revoked" in again.words_so_far()
