"""On real cards: what CPU stand-ins cannot show. Skipped where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

# in a process of its own: conftest.py hides the cards from this one
SCRIPT = """
import sys
import kalavai_nb as kn

def used(config, trial):
    import torch
    block = torch.empty(int(config * 2**30), dtype=torch.uint8, device=trial.device)
    free, total = torch.cuda.mem_get_info()
    return {"free": free, "gpus": trial.gpus, "block": block[:4]}

def fills(config, trial):
    import torch
    free, total = torch.cuda.mem_get_info()
    if trial.gpus < 1:
        torch.empty(2 * total, dtype=torch.uint8, device=trial.device)
    return trial.gpus

if __name__ == "__main__":
    with kn.Pool(devices=1, quiet=True) as pool:
        assert pool.devices[0].kind == "cuda", pool.devices
        values = pool.map(used, [1.0] * 6, isolate=True, show=False).values
        assert max(v["free"] for v in values) - min(v["free"] for v in values) < 2**29, "memory is given back"
        assert values[0]["block"].device.type == "cpu", "tensors come home without their card"
        sweep = pool.map(fills, range(2), gpus=0.5, show=False)
        assert sweep.values == [1, 1], sweep.values
        assert "ran out of GPU memory at gpus=0.5" in sweep[0].note
        print("fine")
"""


def test_memory_is_given_back_and_a_full_card_means_a_whole_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    probe = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    if not torch.version.cuda or subprocess.check_output(probe, env=visible, text=True).strip() == "0":
        pytest.skip("no GPU here")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=visible,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stdout + done.stderr
