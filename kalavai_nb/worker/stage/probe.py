"""How fast a device is with a model, before any of it is loaded: one layer with made-up weights, timed."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from kalavai_nb.weights.mirror import Mirror
from kalavai_nb.worker.stage.cut import layer_count
from kalavai_nb.worker.stage.load import hollow
from kalavai_nb.worker.stage.model import StageModel

TOKENS = 12


def probe(manifest: dict[str, Any], dtype: str, device: str) -> dict[str, Any]:
    """``seconds_per_layer`` of one token, and ``free_bytes`` of the device."""
    model = _one_layer(Mirror(manifest).directory, dtype, torch.device(device))
    shape = (1, 1) if model.first else (1, 1, model.hidden_size)
    x = torch.zeros(shape, dtype=torch.long if model.first else model.dtype)
    seconds = []
    for _ in range(TOKENS):
        started = time.perf_counter()
        # the copy waits for what a GPU still does
        model.run((0,), x).cpu()
        seconds.append(time.perf_counter() - started)
    del model
    return {"seconds_per_layer": statistics.median(seconds), "free_bytes": free_bytes(device)}


def _one_layer(directory: Path, dtype: str, device: torch.device) -> StageModel:
    """One of the layers in the middle, which has neither the embedding nor the head where that can be."""
    middle = layer_count(AutoConfig.from_pretrained(directory)) // 2
    stage = hollow(directory, middle, middle + 1, dtype)
    stage.model.to_empty(device=device)
    with torch.no_grad():
        for tensor in [*stage.model.parameters(), *stage.model.buffers()]:
            tensor.fill_(0.01)
    return StageModel(stage, device)


def free_bytes(device: str) -> int | None:
    """What a GPU has left; None for a stand-in, whose share of the machine's memory is known without asking."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(torch.device(device))[0])
