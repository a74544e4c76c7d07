"""Devices are timed once, in a child; what was measured is remembered, shown, and taken by the planner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kalavai_nb.planner.cards import CPU_BANDWIDTH, bandwidth_of
from kalavai_nb.state import Device
from kalavai_nb.worker import speed
from kalavai_nb.worker.devices import cpu_stand_ins, visible

DEVICE = Device("d", 0, "cpu", "EPYC", "box", "m", 1 << 30)
PROGRAM = """
import json, sys
from dataclasses import asdict
from kalavai_nb.worker.child import start_fork_server
from kalavai_nb.worker.devices import cpu_stand_ins
from kalavai_nb.worker.speed import timed
start_fork_server()
devices = timed(cpu_stand_ins(3), [{"OMP_NUM_THREADS": "1"}] * 3)
print(json.dumps([asdict(device) for device in devices]))
"""


def timed_there(home: Path) -> list[Device]:
    """In a process of its own, as on a machine that joins."""
    environment = {**os.environ, "KALAVAI_HOME": str(home)}
    printed = subprocess.check_output([sys.executable, "-c", PROGRAM], env=environment, text=True, timeout=120)
    return [Device(**fields) for fields in json.loads(printed)]


def test_a_device_is_timed_once_and_those_like_it_with_it(tmp_path: Path) -> None:
    first = timed_there(tmp_path)
    assert len({(device.flops, device.copy_bytes_per_second) for device in first}) == 1
    # of any processor of this century, and of none that there is
    assert 1e8 < (first[0].flops or 0) < 1e13
    assert 1e8 < (first[0].copy_bytes_per_second or 0) < 1e13
    assert (tmp_path / speed.FILE).stat().st_mode & 0o777 == 0o600
    # measured again, it would hardly be the very same
    assert timed_there(tmp_path) == first


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": [1]}', '{"a": [1, "x"]}'])
def test_a_file_that_is_none_is_as_if_there_were_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALAVAI_HOME", str(tmp_path))
    (tmp_path / speed.FILE).write_text(text)
    assert speed._read() == {}


def test_figures_that_cannot_be_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALAVAI_HOME", str(tmp_path))
    (tmp_path / speed.FILE).write_text('{"a": [0, 1], "b": [NaN, 1], "c": [-1, 1], "d": [2, 3]}')
    assert speed._read() == {"d": (2.0, 3.0)}


def test_the_planner_takes_what_was_measured() -> None:
    assert bandwidth_of(DEVICE) == CPU_BANDWIDTH
    assert bandwidth_of(replace(DEVICE, copy_bytes_per_second=3e9)) == 3e9


def test_a_child_sees_one_device_alone() -> None:
    [stand_in] = cpu_stand_ins(1)
    assert visible(stand_in) == {"CUDA_VISIBLE_DEVICES": ""}
    assert visible(replace(DEVICE, kind="cuda", selector="GPU-1")) == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    rocm = replace(DEVICE, kind="rocm", selector="1")
    assert visible(rocm) == {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}
    assert visible(replace(DEVICE, kind="mps")) == {}
