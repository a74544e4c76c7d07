"""The one form of a snapshot: the golden file is read by the tests of the sidebar, too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from kalavai_nb.reading import Machine, Process, Reading
from kalavai_nb.snapshot import Alert, Cell, Event, History, ModelState, Snapshot, SweepState
from kalavai_nb.state import Device, Lease, Waiting
from kalavai_nb.table import snapshot_text

GOLDEN = Path(__file__).parent / "golden" / "snapshot.json"
GIB = 2**30
CUDA, MIG, CPU = "GPU-11111111-2222", "MIG-33333333-4444", "laptop-0a1b2c/cpu:0"
ADA, BOB = "Client-ada", "Client-bob"
LIMITS = "80 % of memory; 22:00-08:00; when idle; at most 250 W"

SNAPSHOT = Snapshot(
    pool="ada.ipynb (812)",
    time=1764050400.25,
    id="9f3c2a7b1d4e",
    machines=(
        Machine("gpu-box-1-00aa", "gpu-box-1", 16, 64 * GIB, 20 * GIB, 0.4),
        Machine("laptop-0a1b2c", "laptop", 8, 16 * GIB),
    ),
    devices=(
        Device(
            CUDA, 0, "cuda", "NVIDIA GeForce RTX 4090", "gpu-box-1", "gpu-box-1-00aa", 24 * GIB, CUDA, "tls://1", LIMITS
        ),
        Device(MIG, 1, "cuda", "NVIDIA A100 MIG 1g.10gb", "gpu-box-1", "gpu-box-1-00aa", 10 * GIB, MIG, "tls://2"),
        Device(CPU, 0, "cpu", "AMD EPYC 7B13", "laptop", "laptop-0a1b2c", 4 * GIB, "", "tls://3"),
    ),
    readings={
        CUDA: Reading(
            12 * GIB, 24 * GIB, 0.71, 66.0, 287.5, 450.0, (Process(4711, "python", 11 * GIB), Process(1, "X"))
        ),
        MIG: Reading(GIB, 10 * GIB, note="MIG: the driver gives no utilisation of an instance"),
    },
    silent_seconds={CPU: 12},
    leaving={MIG: "its owner takes it back: 40 s left"},
    history={CUDA: History((-1,) * 55 + (10, 40, 71, 70, 0), (-1,) * 55 + (20, 30, 50, 50, 50))},
    leases=(
        Lease("lease-1", ADA, "ada.ipynb (812)", "trial", (CUDA,), 1.0, True, 1764050300.0, "sweep lr"),
        Lease("lease-2", BOB, "bob.ipynb (9)", "session", (MIG,), 0.5, False, 1764050000.0),
    ),
    queue=(Waiting("request-1", BOB, "bob.ipynb (9)", 2, 1764050390.0, "1st in the queue; 1 of 2 devices free"),),
    owners={ADA: "ada.ipynb (812)", BOB: "bob.ipynb (9)"},
    cells=(Cell("c0ffee", BOB, 7, "train(model)", 2, (CUDA, MIG), 1764050395.0),),
    sweeps=(
        SweepState(
            f"{ADA}/lr",
            ADA,
            "lr",
            "train",
            "running",
            {"COMPLETE": 3, "RUNNING": 1, "WAITING": 5, "FAILED": 2},
            11,
            1764050300.0,
            "accuracy=0.97 with lr=0.01",
            42.5,
            "2 × ValueError: too large",
        ),
    ),
    models=(ModelState(f"{ADA}/1", ADA, "SmolLM2", "running", ((CUDA, (0, 12)), (MIG, (12, 30))), (CPU,), 20.5, 2),),
    events=(
        Event(1764050200.0, "joined", "laptop cpu:0 joined"),
        Event(1764050388.0, "silent", "laptop cpu:0 is silent"),
    ),
    alerts=(Alert(f"silent/{CPU}", "silent", "no news from laptop cpu:0 for 12 s", CPU),),
)


def test_it_is_the_golden_file() -> None:
    assert SNAPSHOT.to_dict() == json.loads(GOLDEN.read_text())
    assert SNAPSHOT.to_dict() == json.loads(json.dumps(SNAPSHOT.to_dict(), allow_nan=False))


def test_it_comes_back_as_it_went() -> None:
    assert Snapshot.from_fields(json.loads(json.dumps(SNAPSHOT.to_fields()))) == SNAPSHOT
    assert Snapshot.from_fields(Snapshot("empty", 0.0).to_fields()) == Snapshot("empty", 0.0)


def test_what_is_not_known_is_left_out() -> None:
    shown = replace(SNAPSHOT, readings={CUDA: Reading(utilisation=0.0)}).to_dict()
    assert shown["devices"][CUDA]["reading"] == {"utilisation": 0.0}
    assert "reading" not in shown["devices"][MIG]
    assert "null" not in json.dumps(shown)


def test_nothing_in_it_gives_access() -> None:
    assert not any(secret in GOLDEN.read_text() for secret in ("tls://", "selector", "worker"))


def test_what_owners_lend_and_take_back_is_in_the_table() -> None:
    lines = snapshot_text(SNAPSHOT, ADA).splitlines()
    assert f"gpu-box-1 cuda:0 is lent with limits: {LIMITS}" in lines
    assert "its owner takes it back: 40 s left" in next(line for line in lines if "cuda:1" in line)
    alike = tuple(replace(device, limits="when idle") for device in SNAPSHOT.devices)
    assert "gpu-box-1 cuda:0, gpu-box-1 cuda:1, laptop cpu:0 are lent with limits: when idle" in snapshot_text(
        replace(SNAPSHOT, devices=alike)
    )
