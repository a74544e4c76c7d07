"""``python -m tests.benchmarks.quantised DIRECTORY``: what quantisation costs a model, and what it saves.

For each quantisation and dtype, in a process of its own: bits per weight; the memory of the weights, and what the
process has come to hold since before it had a model, both against bfloat16; perplexity and the distance of the logits
from those in float32, on descriptions of data sets of scikit-learn; the time of a step and of a prompt on one thread.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.models import smollm2
from tests.benchmarks.table import Row, figure

PIECE, PIECES = 256, 3
SETTINGS = [(quant, dtype) for quant in (None, "int8", "int4") for dtype in ("float32", "bfloat16")]


def measure() -> Iterator[Row]:
    """Perplexity of SmolLM2 in each quantisation, against float32."""
    found = {(row["quant"], row["dtype"]): row for row in _rows(str(smollm2()))}
    exact = {"float32": found[None, "float32"]["ppl"]}
    for quant in ("int8", "int4"):
        row = found[quant, "bfloat16"]
        note = f"{row['bits']:.2f} bits a weight; the likeliest token is the same for {row['top1']:.0%}"
        yield figure(f"perplexity of SmolLM2-135M in {quant}", row["ppl"], "", None, exact, note)


def _rows(directory: str) -> Iterator[dict[str, Any]]:
    """A row for each quantisation and dtype."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        reference = pool.apply(_logits_of, (directory,))
        for quant, dtype in SETTINGS:
            yield pool.apply(_measure, (directory, quant, dtype, reference))


def _logits_of(directory: str) -> Any:
    return _logits(_load(directory, "float32"), _ids(directory)).numpy()


def _measure(directory: str, quant: str | None, dtype: str, reference: Any) -> dict[str, Any]:
    import torch

    from kalavai_nb.worker.stage.quant import quantise, weight_bytes

    ids = _ids(directory)
    floor = _held_bytes()
    model = _load(directory, dtype)
    weights = sum(parameter.numel() for parameter in model.parameters())
    start = time.perf_counter()
    if quant is not None:
        quantise(model, quant)
    seconds = time.perf_counter() - start
    held = _held_bytes() - floor
    logits, true = _logits(model, ids), torch.from_numpy(reference)
    targets = ids[:, 1:].reshape(-1)
    far = torch.log_softmax(true, -1)
    near = torch.log_softmax(logits, -1)
    return {
        "quant": quant,
        "dtype": dtype,
        "bits": weight_bytes(model) * 8 / weights,
        "of_bf16": weight_bytes(model) / (weights * 2),
        "process_of_bf16": held / (weights * 2),
        "quantise_s": seconds,
        "ppl": float(torch.nn.functional.cross_entropy(logits, targets).exp()),
        "dlogit": float((logits - true).abs().mean()),
        "kl": float((far.exp() * (far - near)).sum(-1).mean()),
        "top1": float((logits.argmax(-1) == true.argmax(-1)).float().mean()),
        "step1_ms": _step_ms(model, ids, 1),
        "step8_ms": _step_ms(model, ids, 8),
        "prefill256_ms": _prefill_ms(model, ids),
    }


def _load(directory: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


def _ids(directory: str) -> Any:
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
    from transformers import AutoTokenizer

    text = "\n".join(load().DESCR for load in (load_breast_cancer, load_iris, load_diabetes))
    ids = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt").input_ids
    return ids[0, : PIECE * PIECES].view(PIECES, PIECE)


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():
        return torch.cat([model(piece[None]).logits[0, :-1].float() for piece in ids])


def _step_ms(model: Any, ids: Any, rows: int) -> float:
    """The quarter of steps that nothing else disturbs."""
    import torch

    with torch.inference_mode():
        out = model(ids[:1, :64].expand(rows, -1), use_cache=True)
        column, times = out.logits[:, -1:].argmax(-1), []
        for _ in range(24):
            start = time.perf_counter()
            out = model(column, past_key_values=out.past_key_values, use_cache=True)
            column = out.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 4] * 1e3


def _prefill_ms(model: Any, ids: Any) -> float:
    import torch

    with torch.inference_mode():
        times = []
        for piece in ids:
            start = time.perf_counter()
            model(piece[None])
            times.append(time.perf_counter() - start)
    return min(times) * 1e3


def _held_bytes() -> int:
    """Memory of the process that is no file: pages of the file of the weights are not counted."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    for row in _rows(sys.argv[1]):
        texts = (f"{value:.4g}" if isinstance(value, float) else value for value in row.values())
        print(" ".join(f"{name}={text}" for name, text in zip(row, texts, strict=True)), flush=True)
