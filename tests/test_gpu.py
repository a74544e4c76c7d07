"""On real cards: what CPU stand-ins cannot show. Skipped where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_lm import tiny_lm

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

MODEL_SCRIPT = """
import sys
import kalavai_nb as kn

if __name__ == "__main__":
    with kn.Pool(quiet=True) as pool:
        options = {"dtype": "float32", "show": False, "spares": 0}
        with pool.load(sys.argv[1], gpus=1, **options) as lm:
            expected = lm.generate(["hello", "all the world"], max_new_tokens=40)
            whole = lm.stages[0].memory_bytes
        with pool.load(sys.argv[1], gpus=len(pool.devices), **options) as lm:
            assert {stage.device.kind for stage in lm.stages} == {"cuda"}, lm.stages
            assert lm.generate(["hello", "all the world"], max_new_tokens=40) == expected
        with pool.load(sys.argv[1], gpus=1, quant="int4", **options) as lm:
            assert lm.generate("hello", max_new_tokens=5)
            assert lm.stages[0].memory_bytes < 0.35 / 2 * whole, lm.stages
        print("fine")
"""


def test_memory_is_given_back_and_a_full_card_means_a_whole_one(tmp_path: Path) -> None:
    assert_fine(SCRIPT, tmp_path)


def test_a_model_gives_the_same_tokens_on_one_card_and_on_all(tmp_path: Path) -> None:
    assert_fine(MODEL_SCRIPT, tmp_path, str(tiny_lm(tmp_path / "model", hidden_size=256, intermediate_size=512)))


def assert_fine(script: str, directory: Path, *arguments: str) -> None:
    """Run it where it sees the cards; skip where there are none."""
    torch = pytest.importorskip("torch")
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    probe = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    if not torch.version.cuda or subprocess.check_output(probe, env=visible, text=True).strip() == "0":
        pytest.skip("no GPU here")
    (directory / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=directory,
        env=visible,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stdout + done.stderr
