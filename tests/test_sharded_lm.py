"""A model over several devices gives what it gives on one, whoever else asks for something at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import kalavai_nb as kn
from kalavai_nb.errors import ModelError, NotEnoughDevices, OptionError
from kalavai_nb.lm.sharded_lm import ShardedLM
from kalavai_nb.planner.shortfall import DoesNotFit
from tiny_lm import EOS, tiny_lm
from tiny_models import tiny_model

TOKENS = 64
RAGGED = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old woman who",
    "1, 2, 3,",
    "def fibonacci(n):",
    "Q: Why is the sky blue?\nA:",
    "Water",
    "To make a good cup of tea, first boil the water, then",
    "My favourite colour is",
]


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(devices=4, quiet=True) as pool:
        yield pool


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def lm(pool: kn.Pool, tiny: Path) -> Iterator[ShardedLM]:
    with pool.load(tiny, gpus=2, max_len=600, max_batch=4, spares=0, show=False) as lm:
        yield lm


def unsharded(path: Path, prompts: list[Any], tokens: int, **options: Any) -> list[list[int]]:
    """What transformers generates greedily, left padded, without what follows the end."""
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    rows = []
    for row in made.tolist():
        end = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:end])
    return rows


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> dict[int, list[list[int]]]:
    torch.set_num_threads(2)
    return {1: unsharded(smollm2, RAGGED[:1], TOKENS), 8: unsharded(smollm2, RAGGED, TOKENS)}


@pytest.mark.parametrize("stages", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 4))])
def test_a_real_model_gives_the_tokens_of_transformers(
    pool: kn.Pool, smollm2: Path, expected: dict[int, list[list[int]]], stages: int
) -> None:
    with pool.load(smollm2, gpus=stages, dtype="float32", spares=0, show=False) as lm:
        assert len(lm.stages) == stages
        assert len({stage.pid for stage in lm.stages}) == stages
        for batch, rows in expected.items():
            made = lm.generate(RAGGED[:batch], max_new_tokens=TOKENS, details=True)
            assert [generation.token_ids for generation in made] == rows


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_moe", "gpt_oss"])
def test_windows_and_experts_give_the_tokens_of_transformers(pool: kn.Pool, tmp_path: Path, family: str) -> None:
    path = tiny_lm(tmp_path, family)
    expected = unsharded(path, RAGGED[:5], 20, attn_implementation="eager")
    with pool.load(path, gpus=3, dtype="float32", max_batch=3, spares=0, show=False) as lm:
        # one that waits for room, and others that go on without it
        assert [g.token_ids for g in lm.generate(RAGGED[:5], max_new_tokens=20, details=True)] == expected


def test_long_prompts_in_pieces_beside_short_ones(lm: ShardedLM, tiny: Path) -> None:
    prompts = ["x" * 530, "hello", "y" * 300, "z" * 511]
    expected = unsharded(tiny, prompts, 20)
    requests = [lm.submit(prompt, max_new_tokens=20) for prompt in prompts]
    assert [request.result().token_ids for request in requests] == expected


def test_requests_join_and_leave_as_they_come(lm: ShardedLM, tiny: Path) -> None:
    """From many threads, more than there is room for, of all lengths."""
    prompts = [f"{number} " * (1 + number % 7) for number in range(16)]
    lengths = [1 + 5 * (number % 6) for number in range(16)]
    expected = unsharded(tiny, prompts, max(lengths))
    made: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        made[number] = lm.generate(prompts[number], max_new_tokens=lengths[number], details=True).token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[number] for number in range(16)] == [
        row[:length] for row, length in zip(expected, lengths, strict=True)
    ]


def test_a_text_for_a_text_and_a_list_for_a_list(lm: ShardedLM) -> None:
    one = lm.generate("hello", max_new_tokens=5)
    assert isinstance(one, str)
    assert lm.generate(["hello"], max_new_tokens=5) == [one]
    assert lm.generate(lm.encode("hello"), max_new_tokens=5) == one
    assert lm.generate([], max_new_tokens=5) == []
    assert "".join(lm.stream("hello", max_new_tokens=5)) == one


def test_chat_uses_the_template(lm: ShardedLM) -> None:
    by_hand = lm.generate("<user>hi\n<assistant>", max_new_tokens=8)
    assert lm.chat("hi", max_new_tokens=8) == by_hand
    assert lm.generate([{"role": "user", "content": "hi"}], max_new_tokens=8) == by_hand
    both = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]]
    assert lm.generate(both, max_new_tokens=8)[0] == by_hand


def test_seeds_give_the_same_again_and_lists_differ(lm: ShardedLM) -> None:
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 5}
    first = lm.generate(["hello"] * 3, **options)
    assert first == lm.generate(["hello"] * 3, **options)
    assert len(set(first)) == 3
    assert lm.generate("hello", max_new_tokens=20, temperature=1.0) != lm.generate(
        "hello", max_new_tokens=20, temperature=1.0
    )


def test_stop_strings_end_it_and_free_its_place(lm: ShardedLM) -> None:
    whole = lm.generate("hello", max_new_tokens=30)
    stop = whole[4:6]
    made = lm.generate("hello", max_new_tokens=30, stop=stop, details=True)
    assert made.text == whole[: whole.index(stop)]
    assert made.finish_reason == "stop"
    assert len(lm.generate(["hello"] * 12, max_new_tokens=30, stop=[stop, "never"])) == 12


def test_log_probabilities_are_those_of_the_model(lm: ShardedLM, tiny: Path) -> None:
    made = lm.generate("hello", max_new_tokens=4, logprobs=3, details=True)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    ids = [*lm.tokenizer("hello")["input_ids"], *made.token_ids]
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, scored in enumerate(made.logprobs):
        row = scores[len(ids) - 5 + place]
        assert scored.logprob == pytest.approx(float(row[scored.token_id]), abs=1e-4)
        assert [token for token, _, _ in scored.top] == row.topk(3).indices.tolist()


def test_the_end_of_a_sequence_ends_it(pool: kn.Pool, tmp_path: Path) -> None:
    """A model whose every token is its end."""
    path = tiny_lm(tmp_path)
    [file] = path.glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"][:] = 0
    tensors["lm_head.weight"][EOS] = tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pool.load(path, gpus=1, dtype="float32", show=False) as lm:
        [expected] = unsharded(path, ["hello"], 9)
        made = lm.generate("hello", max_new_tokens=9, details=True)
        assert made.token_ids == expected
        assert (made.finish_reason == "stop") == (expected[-1] == EOS)


def test_a_stream_that_is_left_ends_at_once(lm: ShardedLM) -> None:
    stream = lm.stream("hello", max_new_tokens=500)
    next(stream)
    stream.close()
    # its place is free again: four others run at once
    assert len(lm.generate(["a", "b", "c", "d"], max_new_tokens=3)) == 4


def test_what_cannot_be_meant_is_a_sentence(lm: ShardedLM) -> None:
    with pytest.raises(ModelError, match="more than max_len=600"):
        lm.generate("x" * 400, max_new_tokens=300)
    with pytest.raises(OptionError, match="temperature"):
        lm.generate("x", temperature=-1)
    for ask in (lm.generate, lm.chat, lm.submit, lambda *x, **o: list(lm.stream(*x, **o))):
        with pytest.raises(OptionError, match=r"no option 'max_tokens'\. Did you mean 'max_new_tokens'\?"):
            ask("x", max_tokens=3)
    with pytest.raises(OptionError, match=r"'detail'\. Did you mean 'details'\?"):
        lm.generate("x", detail=True)
    for wrong in ([None], 5, {"role": "user", "content": "x"}):
        with pytest.raises(OptionError, match="a prompt is a text"):
            lm.generate(wrong)  # type: ignore[call-overload]


def test_what_nobody_said_is_what_there_is_room_for(lm: ShardedLM) -> None:
    [done] = lm.generate(["x" * 590], details=True)
    assert done.prompt_tokens + len(done.token_ids) == lm.max_len or done.finish_reason == "stop"


def test_the_plan_says_where_it_is(lm: ShardedLM) -> None:
    plan = lm.plan
    assert [(stage.start, stage.end) for stage in plan.stages] == [stage.layers for stage in lm.stages]
    assert "ms per layer" in repr(plan)
    assert "2 devices" in plan._repr_html_()
    assert list(plan.table()["device"]) == [str(stage.device) for stage in lm.stages]
    assert plan.tokens_per_second
    assert "ShardedLM" in repr(lm)


def test_one_device_where_it_fits_and_the_rest_stays_free(pool: kn.Pool, tiny: Path, lm: ShardedLM) -> None:
    with pool.load(tiny, show=False) as small:
        assert len(small.stages) == 1
        assert small.spares == []
        assert small.generate("hello", max_new_tokens=5) == lm.generate("hello", max_new_tokens=5)


def test_replicas_share_requests_and_come_and_go(pool: kn.Pool, tiny: Path, lm: ShardedLM) -> None:
    alone = lm.generate(RAGGED, max_new_tokens=30)
    with pool.load(tiny, gpus=1, replicas=2, show=False) as copies:
        assert len(copies.stages) == 2
        assert copies.generate(RAGGED, max_new_tokens=30) == alone
        # the other two devices are held
        assert copies.grow(3) == 0
        requests = [copies.submit(prompt, max_new_tokens=30) for prompt in RAGGED]
        copies.shrink(1)
        assert [request.result().text for request in requests] == alone
        assert len(copies.stages) == 1
        assert copies.grow(3) == 1
        assert copies.generate(RAGGED, max_new_tokens=30) == alone


def test_leases_and_processes_are_given_back(pool: kn.Pool, tiny: Path) -> None:
    lm = pool.load(tiny, gpus=1, spares=1, show=False)
    processes = [psutil.Process(stage.pid) for stage in lm.stages]
    lm.close()
    lm.close()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    # a message on its way to the head
    deadline = time.monotonic() + 10
    while len(pool.snapshot().leases) > 2:
        assert time.monotonic() < deadline
    for ask in (lm.generate, lm.chat, lm.submit):
        with pytest.raises(ModelError, match="closed; load it again"):
            ask("hello", max_tokens=1)


def test_models_that_cannot_be_loaded_are_refused_before_anything_is_read(pool: kn.Pool, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model 'nowhere'"):
        pool.load("nowhere", show=False)
    unsplittable = tiny_model("bloom", tmp_path / "bloom")
    for file in unsplittable.glob("*.safetensors"):
        file.write_bytes(b"not read")
    with pytest.raises(ModelError):
        pool.load(unsplittable, show=False)
    assert not [lease for lease in pool.snapshot().leases if "bloom" in lease.what]


def test_a_model_that_does_not_fit_says_by_how_much(pool: kn.Pool, tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(DoesNotFit, match="GiB"):
        pool.load(tiny, max_len=2_000_000_000, show=False)
    with pytest.raises((NotEnoughDevices, ModelError), match="devices"):
        pool.load(tiny, gpus=6, show=False)
    for wrong, said in (
        ({"gpus": 0}, "gpus= wants"),
        ({"quant": "int3"}, "quant= wants"),
        ({"max_batch": 0}, "max_batch= wants"),
        ({"wait": "soon"}, "wait=soon cannot be meant: wanted a time such as 30s"),
        ({"dtype": "float17"}, "dtype"),
    ):
        with pytest.raises((OptionError, ModelError), match=said):
            pool.load(tiny, show=False, **wrong)


def test_what_is_cancelled_in_its_prompt_leaves_nothing_in_the_stages(lm: ShardedLM) -> None:
    def held() -> int:
        for member in lm._rings.all[0].members:
            member.ping()
        # a generation later, all that was said has been heard
        lm.generate("a", max_new_tokens=3)
        return sum(stage.kv_bytes for stage in lm.stages)

    held()
    for _ in range(8):
        request = lm.submit("x" * 500, max_new_tokens=50)
        lm.cancel([request])
    for _ in range(3):
        last = held()
    # what the last generation had itself may not be dropped yet
    assert last <= 2 * 6 * 2 * 2 * 8 * 4 * 64


def test_one_prompt_that_is_too_long_leaves_none_of_the_others_running(lm: ShardedLM) -> None:
    with pytest.raises(ModelError, match="more than max_len"):
        lm.generate(["hello", "x" * 599], max_new_tokens=100)
    assert lm._rings.all[0].load == 0


def test_a_load_that_is_refused_reads_nothing_and_leaves_no_line(
    pool: kn.Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotEnoughDevices, match="gpus=5 was asked for, but the pool has 4 devices"):
        pool.load(tmp_path / "unread", gpus=5)
    with pytest.raises(ModelError):
        pool.load(tmp_path, gpus=1, wait="2m")
    assert capsys.readouterr().out == ""


def test_a_tokenizer_that_cannot_be_read_leaves_no_lease(pool: kn.Pool, tmp_path: Path) -> None:
    path = tiny_lm(tmp_path / "untold")
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer of untold cannot be read"):
        pool.load(path, show=False)
    assert not [lease for lease in pool.snapshot().leases if "untold" in lease.what]


def test_who_listens_and_fails_disturbs_nobody(lm: ShardedLM) -> None:
    def bad(_: object) -> None:
        raise ValueError("not the ring's to suffer")

    request = lm.submit("hello", sink=bad, max_new_tokens=5)
    assert lm.generate("hello", max_new_tokens=5) == request.result().text
