"""A stage by itself: rows that come and go, what it reads of the files, and what it holds in memory."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kalavai_nb.errors import ModelError
from kalavai_nb.worker.stage.layers import Growing, GrowingWindow
from kalavai_nb.worker.stage.model import StageModel, tensors_of
from kalavai_nb.worker.stage.tensor_files import tensors_in
from staged import EXACT, Staged, sequences, whole
from tiny_models import tiny_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen3_next"])
def any_model(request, tmp_path_factory):
    return tiny_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


def test_rows_in_any_batches_are_as_if_each_were_alone(any_model: Path) -> None:
    """Random calls: any rows in any order, pieces of any length, padding before or, for rows under way, in between."""
    chance = random.Random(7)
    ids = sequences([12] * 4)
    expected = whole(any_model, ids)
    staged = Staged(any_model, [0, 4, 6])
    at = dict.fromkeys(range(4), 0)
    while unfinished := [row for row in at if at[row] < 12]:
        rows = chance.sample(unfinished, chance.randint(1, len(unfinished)))
        width = chance.randint(1, 5)
        counts = [min(chance.randint(0, width), 12 - at[row]) for row in rows]
        pieces = [[0] * (width - n) + ids[row][at[row] : at[row] + n] for row, n in zip(rows, counts, strict=True)]
        logits = staged.run(rows, pieces, [width - n for n in counts])
        for row, n, of_row in zip(rows, counts, logits, strict=True):
            at[row] += n
            if n:
                assert (of_row - expected[row][at[row] - 1]).abs().max() <= EXACT
            else:
                assert not of_row.any()
        lengths = staged.stages[1].lengths()
        assert {row: lengths.get(row, 0) for row in at} == at


def test_dropped_rows_are_forgotten_and_their_numbers_free(llama: Path) -> None:
    ids = sequences([8, 8, 8])
    expected = whole(llama, ids)
    staged = Staged(llama, [0, 3, 6])
    staged.run([1, 2], ids[:2])
    staged.drop([1, 77])
    assert staged.stages[0].lengths() == {2: 8}
    logits = staged.run([1], [ids[2]])[0]
    assert (logits - expected[2][-1]).abs().max() <= EXACT
    for stage in staged.stages:
        stage.reset()
        assert stage.lengths() == {}
        assert stage.memory["kv_bytes"] == 0


def test_a_call_for_the_same_rows_copies_nothing(llama: Path) -> None:
    stage = StageModel.load(llama, 0, 3, dtype="float32")
    stage.run([4, 9], torch.tensor([[5, 6, 7], [5, 6, 7]]))
    batch = stage._memory.batch((4, 9), (0, 0))
    places = [layer.keys.data_ptr() for layer in batch.cache.layers[:3]]
    for _ in range(20):
        stage.run([4, 9], torch.tensor([[5], [6]]))
    assert stage._memory.batch((4, 9), (0, 0)) is batch
    assert [layer.keys.data_ptr() for layer in batch.cache.layers[:3]] == places


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Growing(), DynamicLayer()), (GrowingWindow(7), DynamicSlidingWindowLayer(7))],
    ids=["full", "window"],
)
def test_what_grows_in_place_has_the_very_bits_of_what_is_put_together(ours, theirs) -> None:
    torch.manual_seed(0)
    for columns in (3, 1, 1, 90, 1, 2, 200, *[1] * 80):
        keys, values = torch.randn(2, 3, columns, 8), torch.randn(2, 3, columns, 4)
        for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, other)


# what is read


def test_a_stage_reads_its_own_tensors_only(llama: Path) -> None:
    first, middle, last = (tensors_of(llama, a, b) for a, b in ((0, 2), (2, 4), (4, 6)))
    assert {name for name in middle if not name.startswith(("model.layers.2.", "model.layers.3."))} == set()
    assert "model.embed_tokens.weight" in first
    assert {"model.norm.weight", "lm_head.weight"} <= last
    assert first | middle | last == set(tensors_in(llama))


def test_experts_are_fused_on_the_way_and_no_others_are_read(tmp_path: Path) -> None:
    mixture = tiny_model("qwen3_moe", tmp_path)
    names = tensors_of(mixture, 2, 4)
    assert "model.layers.2.mlp.experts.3.up_proj.weight" in names
    assert {name.split(".")[2] for name in names} == {"2", "3"}


def test_files_may_be_sparse(llama: Path, tmp_path: Path) -> None:
    """The bytes of other stages' tensors are not there: the file has its header, our tensors and holes."""
    for file in llama.iterdir():
        if file.name != WEIGHTS:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    whole_file = (llama / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole_file[:8], "little")
    with (tmp_path / WEIGHTS).open("wb") as sparse:
        sparse.write(whole_file[:header])
        sparse.truncate(len(whole_file))
        assert tensors_of(tmp_path, 2, 6) == tensors_of(llama, 2, 6)
        for name in tensors_of(tmp_path, 2, 6):
            tensor = tensors_in(llama)[name]
            sparse.seek(tensor.offset)
            sparse.write(whole_file[tensor.offset : tensor.offset + tensor.bytes])
    hidden = torch.randn(1, 4, 32)
    holed, whole = StageModel.load(tmp_path, 2, 6), StageModel.load(llama, 2, 6)
    ours, theirs = (stage._stage.model.state_dict() for stage in (holed, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    # to the last bit only on some processors
    torch.testing.assert_close(holed.run([0], hidden), whole.run([0], hidden))


def test_weights_are_memory_of_our_own(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path)
    stage = StageModel.load(model, 0, 6)
    before = stage.run([0], torch.tensor([[5, 6, 7]]))
    size = (model / WEIGHTS).stat().st_size
    with (model / WEIGHTS).open("r+b") as file:
        file.write(bytes(size))
    torch.testing.assert_close(stage.run([1], torch.tensor([[5, 6, 7]])), before)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in stage._stage.model.parameters())


def test_progress_ends_at_the_bytes_of_the_stage(llama: Path) -> None:
    told: list[tuple[int, int]] = []
    stage = StageModel.load(llama, 0, 2, on_progress=lambda read, total: told.append((read, total)))
    assert told[-1][0] == told[-1][1] == sum(tensors_in(llama)[name].bytes for name in tensors_of(llama, 0, 2))
    assert [read for read, _ in told] == sorted(read for read, _ in told)
    assert 0 <= stage.memory["weights_bytes"] - told[-1][1] < 1024  # buffers that are in no file


def test_dtype_is_that_of_the_model_unless_told(llama: Path) -> None:
    assert StageModel.load(llama, 0, 2).dtype == torch.float32
    stage = StageModel.load(llama, 0, 2, dtype="bfloat16")
    assert stage.run([0], torch.tensor([[5, 6]])).dtype == torch.bfloat16
    last = StageModel.load(llama, 4, 6, dtype="bfloat16")
    assert last.run([0], torch.randn(1, 2, 32)).dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_stage_is_near_the_whole_and_small(tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path, hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain, packed = StageModel.load(model, 0, 6), StageModel.load(model, 0, 6, quant="int8")
    exact, near = plain.run([0], ids), packed.run([0], ids)
    assert torch.nn.functional.cosine_similarity(exact, near).item() > 0.99
    assert packed.memory["weights_bytes"] < 0.4 * plain.memory["weights_bytes"]


# what cannot be


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path)
    weights = load_file(model / WEIGHTS)
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    StageModel.load(model, 0, 3)
    with pytest.raises(ModelError, match=r"missing: model\.layers\.3\.mlp\.up_proj\.weight"):
        StageModel.load(model, 3, 6)


def test_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ModelError, match=r"another shape than the config says: model\.layers\.0"):
        StageModel.load(model, 0, 2)


@pytest.mark.parametrize(
    ("start", "end", "dtype", "sentence"),
    [(0, 7, "auto", "layers 0 to 6"), (3, 3, "auto", "layers 3 to 3"), (0, 2, "int8", "is no type of weights")],
)
def test_what_cannot_be_loaded_is_said(llama: Path, start: int, end: int, dtype: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        StageModel.load(llama, start, end, dtype=dtype)


def test_padding_wider_than_the_piece_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match="cannot have"):
        StageModel.load(llama, 0, 2).run([0], torch.tensor([[5, 6]]), [3])


# what it holds

MEASURE = """
import sys, pathlib
from kalavai_nb.worker.stage.model import StageModel
import torch
torch.set_num_threads(1)

def read(file, name):
    return next(int(line.split()[1]) << 10 for line in open(file) if line.startswith(name))

small, big, start, end = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
StageModel.load(small, 0, 2)  # what torch and transformers need once
before = read("/proc/self/smaps_rollup", "Rss:")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
stage = StageModel.load(big, start, end)
peak = read("/proc/self/status", "VmHWM:")
after = read("/proc/self/smaps_rollup", "Rss:")
print(stage.memory["weights_bytes"], peak - before, after - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_process_holds_its_stage_and_never_the_whole_model(family: str, tmp_path: Path) -> None:
    small = tiny_model(family, tmp_path / "small")
    big = tiny_model(family, tmp_path / "big", hidden_size=512, intermediate_size=1024, num_hidden_layers=8)
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(big), "2", "4"], check=True, capture_output=True, text=True
    )
    stage_bytes, peak_bytes, held_bytes = map(int, told.stdout.split())
    layer_bytes = stage_bytes // 2
    assert held_bytes < 1.15 * stage_bytes + (16 << 20)
    # experts are in memory twice while those of one layer are fused
    assert peak_bytes < 1.15 * stage_bytes + (16 << 20) + (layer_bytes if family == "mixtral" else 0)
