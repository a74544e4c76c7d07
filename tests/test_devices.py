"""Which devices a machine has: drivers that answer everything, something, or nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import kalavai_nb as kn
import nvml
from kalavai_nb.errors import OptionError
from kalavai_nb.state import machine_id
from kalavai_nb.worker.devices import cpu_stand_ins, cuda_devices, local_devices, rocm_devices

MIB = 1 << 20
SCRIPT = """
import json
from dataclasses import asdict
from kalavai_nb.worker.devices import cuda_devices
print(json.dumps([asdict(device) for device in cuda_devices()]))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build_stub(tmp_path_factory.mktemp("nvml"))


def found(stub: Path, visible: str | None = None, **settings: object) -> list[dict[str, Any]]:
    """What `cuda_devices` finds in a process that has the stub."""
    environment = nvml.environment(stub, **settings)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    devices: list[dict[str, Any]] = json.loads(done.stdout)
    return devices


def gpu(number: int) -> str:
    return f"GPU-{number:08x}-0000-0000-0000-{number:012x}"


def instance(number: int, place: int) -> str:
    return f"MIG-{number:08x}-0000-0000-0000-{place:012x}"


def test_gpus_are_known_by_their_uuid(stub: Path) -> None:
    first, second = found(stub, name="NVIDIA GeForce RTX 4090")
    assert (first["id"], first["selector"], first["index"]) == (gpu(0), gpu(0), 0)
    assert (second["id"], second["index"], second["kind"]) == (gpu(1), 1, "cuda")
    assert (first["name"], first["memory_bytes"]) == ("NVIDIA GeForce RTX 4090", 24576 * MIB)


def test_instances_are_devices_and_their_gpu_is_not(stub: Path) -> None:
    devices = found(stub, **{"gpu0.mig": 2})
    assert [(d["selector"], d["index"], d["name"]) for d in devices] == [
        (instance(0, 0), 0, "Fake GPU 0 MIG 1g.10gb"),
        (instance(0, 1), 1, "Fake GPU 0 MIG 1g.10gb"),
        (gpu(1), 2, "Fake GPU 1"),
    ]
    assert [d["memory_bytes"] // MIB for d in devices] == [9856, 9856, 24576]
    [plain] = found(stub, count=1, plain_names=1, mig=1)
    assert plain["name"] == "Fake GPU 0 MIG 1g.10gb", "its driver gives it the name of the whole GPU"
    assert not found(stub, count=1, mig=0), "nothing can run on a GPU that is to be split and is not"
    assert len(found(stub, can_mig=1)) == 2


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("-1", []),
        ("1", [gpu(1)]),
        ("2, 1", [gpu(1), gpu(2)]),
        ("0", [instance(0, 0), instance(0, 1)]),
        (gpu(0), [instance(0, 0), instance(0, 1)]),
        (instance(0, 1), [instance(0, 1)]),
        ("GPU-00000002", [gpu(2)]),
    ],
)
def test_visible_devices(stub: Path, visible: str, expected: list[str]) -> None:
    devices = found(stub, visible, count=3, **{"gpu0.mig": 2})
    assert [device["selector"] for device in devices] == expected


FUNCTIONS = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetMigMode",
    "nvmlShutdown",
)


@pytest.mark.parametrize("code", [3, 4, 13, 999])
def test_a_gpu_that_does_not_answer_is_a_device_all_the_same(stub: Path, code: int) -> None:
    [device] = found(stub, count=1, **{f"fail.{function}": code for function in FUNCTIONS})
    assert (device["name"], device["selector"], device["id"]) == ("NVIDIA GPU", "0", f"{machine_id()}/cuda:0")
    # "not supported" is what a GPU says that shares its machine's memory
    assert bool(device["memory_bytes"]) == (code == 3)


def test_a_lost_gpu_does_not_take_the_others_with_it(stub: Path) -> None:
    assert [device["selector"] for device in found(stub, count=3, **{"gpu1.lost": 1})] == [gpu(0), gpu(2)]


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_a_driver_that_does_not_start_has_no_devices(stub: Path, function: str) -> None:
    assert found(stub, **{f"fail.{function}": 9}) == []


def test_where_there_is_no_driver_there_are_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert cuda_devices() == rocm_devices() == []
    assert [device.kind for device in local_devices()] == ["cpu"] * 4
    assert len(local_devices(3)) == len({device.id for device in cpu_stand_ins(3)}) == 3


def test_a_half_installed_library_has_no_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As amdsmi is without ROCm: it prints, then breaks."""
    (tmp_path / "amdsmi.py").write_text("print('Unable to find libamd_smi.so')\nraise KeyError('libamd_smi.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert rocm_devices() == []
    assert capsys.readouterr().out == ""


def amdsmi(enumerates: bool) -> Any:
    """Answers of the form that amdsmi documents: its library cannot be here."""
    smi: Any = types.ModuleType("amdsmi")
    smi.amdsmi_init = smi.amdsmi_shut_down = lambda: None
    smi.amdsmi_get_processor_handles = lambda: [0, 1]
    smi.amdsmi_get_gpu_device_bdf = lambda handle: f"0000:0{handle + 3}:00.0"
    smi.amdsmi_get_gpu_asic_info = lambda handle: {"market_name": ["AMD Instinct MI300X", "N/A"][handle]}
    smi.amdsmi_get_gpu_vram_usage = lambda handle: {"vram_total": 196592, "vram_used": 283}
    if enumerates:
        smi.amdsmi_get_gpu_enumeration_info = lambda handle: {
            "hip_id": 1 - handle,
            "hip_uuid": f"GPU-{handle}{handle}",
        }
    return smi


@pytest.mark.parametrize(
    ("enumerates", "environment", "selectors"),
    [
        (True, {}, ["1", "0"]),
        (False, {}, ["0", "1"]),
        (True, {"HIP_VISIBLE_DEVICES": "1"}, ["1"]),
        (True, {"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, ["0"]),
        (True, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (True, {"ROCR_VISIBLE_DEVICES": "GPU-00"}, ["0"]),
        (True, {"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "0"}, ["0"]),
    ],
)
def test_amd_gpus_as_amdsmi_describes_them(
    monkeypatch: pytest.MonkeyPatch, enumerates: bool, environment: dict[str, str], selectors: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi(enumerates))
    devices = rocm_devices()
    assert [device.selector for device in devices] == selectors
    if len(devices) == 2:
        assert [device.name for device in devices] == ["AMD Instinct MI300X", "AMD GPU"]
        assert [device.id for device in devices] == [f"{machine_id()}/rocm:0000:0{n}:00.0" for n in (3, 4)]
        assert {(device.kind, device.memory_bytes, device.torch_name) for device in devices} == {
            ("rocm", 196592 * MIB, "cuda:0")
        }


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "two"])
def test_a_number_of_devices_that_cannot_be_meant_is_refused_in_a_sentence(count: Any) -> None:
    with pytest.raises(OptionError, match=re.escape(f"devices={count!r} cannot be meant: wanted how many devices")):
        kn.Pool(devices=count)
