"""A GGUF file as a directory in Hugging Face form: its tensors unpacked, configuration and tokenizer as transformers
makes them of such files.

Done once for each file and dtype, into the cache. transformers itself would unpack all of it into memory, each time.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kalavai_nb.errors import MissingExtra, ModelError
from kalavai_nb.weights.cache import disk_errors, label, locked, models_directory, require_room
from kalavai_nb.weights.gguf_file import OUTLINE_TOKENS, GgufFile
from kalavai_nb.weights.gguf_names import plan, unsupported
from kalavai_nb.weights.gguf_tensors import DTYPES, header_of, write_tensors
from kalavai_nb.weights.headers import full_bytes
from kalavai_nb.weights.local import SINGLE

# another number makes other directories: raise it when what is written changes
FORM = 1
# settings that transformers has, and does not take from the files of these architectures: so it only knows the sizes of
# one model each (Qwen3-30B-A3B, but not Qwen3-235B-A22B)
_HEAD, _EXPERT = ("head_dim", "attention.key_length"), ("moe_intermediate_size", "expert_feed_forward_length")
_PASSED_OVER = {
    "qwen3": [_HEAD],
    "qwen3moe": [_HEAD, _EXPERT],
    "qwen2moe": [_EXPERT, ("shared_expert_intermediate_size", "expert_shared_feed_forward_length")],
}


def convert(path: Path, dtype: str, on_progress: Callable[[int, int], None]) -> Path:
    """The directory that this file is as ``dtype`` ("auto" is "bfloat16"), made where the cache does not have it.

    Raises ModelError for a file that cannot be converted, MissingExtra without the packages for it.
    """
    dtype = "bfloat16" if dtype == "auto" else dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} was asked for {path.name}; it is one of {', '.join(DTYPES)}, or auto.")
    for package in ("gguf", "torch", "transformers"):
        _package(package)
    with disk_errors(f"read {path}"):
        source = GgufFile.open(path)
    _check_whole(source)
    models = models_directory()
    directory = models / _digest(source, dtype)
    with disk_errors(f"convert {path} to {directory}"), locked(models / f".{directory.name}.lock"):
        if not directory.is_dir():
            part = models / f".{directory.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o700)
            try:
                _fill(part, source, dtype, on_progress)
                part.rename(directory)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return directory


def _fill(directory: Path, source: GgufFile, dtype: str, on_progress: Callable[[int, int], None]) -> None:
    import torch

    transformers = _package("transformers")
    config = _config(source, directory)
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"transformers cannot make a causal language model of what {source.path.name} says of itself ({error}). "
            "Take the model in Hugging Face form."
        ) from error
    chosen = plan(model, source.architecture, [tensor.name for tensor in source.tensors])
    size_bytes = full_bytes(header_of(chosen.shapes, dtype), SINGLE)
    require_room(directory, size_bytes, f"{source.path.name} unpacked as {dtype}")
    _save_tokenizer(source.path, config, directory)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    write_tensors(source, chosen, directory / SINGLE, dtype, on_progress)
    label(directory, source.path.name, "gguf")
    # the content is named after its times too: the same file converted again is the same model to all workers
    modified_ns = source.path.stat().st_mtime_ns
    os.utime(directory / SINGLE, ns=(modified_ns, modified_ns))


def _config(source: GgufFile, directory: Path) -> Any:
    """The configuration that transformers makes of the file."""
    outline = directory / "outline.gguf"
    source.write_outline(outline)
    try:
        config = _package("transformers").AutoConfig.from_pretrained(str(directory), gguf_file=outline.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{source.path.name}: {unsupported(source.architecture)}") from error
    finally:
        outline.unlink()
    if source.vocabulary and config.vocab_size == OUTLINE_TOKENS:
        config.vocab_size = source.vocabulary
    if any(tensor.name == "output.weight" for tensor in source.tensors):
        # a head of its own, often of other bits than the embedding: falcon and bloom say they are tied all the same
        config.tie_word_embeddings = False
    for setting, key in _PASSED_OVER.get(source.architecture, ()):
        setattr(config, setting, source.get(f"{source.architecture}.{key}", getattr(config, setting)))
    return config


def _save_tokenizer(path: Path, config: Any, directory: Path) -> None:
    """The tokenizer that `AutoTokenizer` makes of the file, by the class it would take."""
    transformers = _package("transformers")
    chosen = transformers.TOKENIZER_MAPPING.get(type(config), None)
    if chosen is None or chosen.__name__ == "MistralCommonBackend":
        chosen = transformers.PreTrainedTokenizerFast
    try:
        chosen.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(directory)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"transformers cannot make a tokenizer of {path.name} ({error}). Take the model in Hugging Face form."
        ) from error


def _check_whole(source: GgufFile) -> None:
    parts = int(source.get("split.count") or 1)
    if parts > 1:
        raise ModelError(
            f"{source.path.name} is one of {parts} parts of a model. Join them once: "
            f"`llama-gguf-split --merge {source.path.name} whole.gguf`, and name the whole."
        )
    if (kind := str(source.get("general.type", "model"))) != "model":
        raise ModelError(f"{source.path.name} is of the type {kind}, not a model. Name the file of the model itself.")


def _digest(source: GgufFile, dtype: str) -> str:
    digest = hashlib.sha256(f"{FORM} {dtype} {source.size_bytes} {source.path.stat().st_mtime_ns}\n".encode())
    digest.update(source.header)
    return digest.hexdigest()


def _package(name: str) -> Any:
    """A package that only this needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"a GGUF file needs {name}, which is not installed. Run: pip install 'kalavai-nb[models]'"
        ) from error
