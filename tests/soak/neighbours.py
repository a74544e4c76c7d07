"""What a soak does beside cells, sweeps and models: other notebooks that come and go, panels, a pool that is slow."""

from __future__ import annotations

from soak.bench import PATIENCE_SECONDS, Bench, all_said, freeze, until

from notebook import Notebook

WIDGET = "application/vnd.jupyter.widget-view+json"


def visitor(bench: Bench) -> None:
    """A second notebook comes by an invite, runs a cell, and leaves, or is killed in the middle of one."""
    invite = bench.value("pool.invite()")
    with Notebook(cwd=str(bench.directory), env=bench.environment) as other:
        other.ok(
            f"%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool({invite!r}, quiet=True)", PATIENCE_SECONDS
        )
        cell = other.ok("%%pool gpus=1\nprint('visits', world_size)", PATIENCE_SECONDS)
        all_said(cell, "visits 1", 1)
        assert other.value("pool.map(lambda x: x + 1, range(8), show=False).values") == list(range(1, 9))
        how = bench.luck.choice(["leaves", "killed", "killed while it runs a cell"])
        bench.counts[f"visitor {how}"] += 1
        if how == "leaves":
            other.ok("pool.close()")
        elif how == "killed":
            other.kill()
        else:
            request = other.begin("%%pool gpus=1\nprint('begun', flush=True)\nimport time\ntime.sleep(600)")
            other.wait_for_text(request, "begun", PATIENCE_SECONDS)
            other.kill()
    others = "[lease for lease in pool.snapshot().leases if lease.owner != pool.owner]"
    until(lambda: not bench.value(f"len({others})"), "nothing held by a notebook that is gone")
    bench.ok(f"%%pool gpus={bench.gpus()}\npass")


def panel(bench: Bench) -> None:
    """The panel, shown as a front end shows it, live for a moment, and scrolled away; or as plain HTML."""
    widget = bench.luck.random() < 0.7
    cell = bench.ok(f"display(pool.panel(widget={widget}))")
    assert cell.displays, "the panel shows nothing"
    for comm in [view[WIDGET]["model_id"] for view in cell.displays if WIDGET in view]:
        for views in (1, 0):
            data = {"method": "update", "state": {"_view_count": views}, "buffer_paths": []}
            client = bench.notebook.client
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm, "data": data}))
            bench.ok("time.sleep(1.5)")


def look(bench: Bench) -> None:
    """A snapshot, the table of %pool, the doctor."""
    snapshot = bench.value("pool.snapshot().to_dict()")
    assert len(snapshot["devices"]) == 4, snapshot["devices"]
    assert "cpu" in bench.ok("%pool").text
    bench.ok("print(pool.doctor())")


def frozen_worker(bench: Bench) -> None:
    """It stands still, for less than the pool's patience: nothing is lost."""
    _with_frozen(bench, bench.worker().pid, bench.luck.uniform(1, 6))


def frozen_head(bench: Bench) -> None:
    _with_frozen(bench, bench.head().pid, bench.luck.uniform(0.5, 4))


def _with_frozen(bench: Bench, pid: int, seconds: float) -> None:
    count = bench.luck.randint(10, 30)
    bench.counts["trials"] += count
    request = bench.begin(
        f"print('begun', flush=True)\nsweep = pool.map(lambda x: x * 10, range({count}), show=False)\n"
        f"assert sweep.values == [x * 10 for x in range({count})], sweep\ndel sweep"
    )
    freeze(pid, seconds)
    cell = bench.finish(request)
    assert cell.status == "ok", cell.traceback
    gpus = bench.gpus()
    cell = bench.ok(f"%%pool gpus={gpus}\nprint('there')")
    all_said(cell, "there", gpus)
