"""A directory in Hugging Face form: which of its files are the model."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

from kalavai_nb.errors import ModelError
from kalavai_nb.weights.cache import disk_errors
from kalavai_nb.weights.headers import read_header
from kalavai_nb.weights.manifest import INDEX, SMALL_FILES, Manifest, WeightFile, plain_name

SINGLE = "model.safetensors"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def manifest_of(directory: Path, name: str) -> Manifest:
    """What the model of this directory consists of; only headers are read.

    Raises ModelError for a directory that is in another form, or lacks something.
    """
    with disk_errors(f"read the model {directory}"):
        if not (directory / "config.json").is_file():
            raise ModelError(_no_config(directory))
        small = {each: (directory / each).read_text() for each in SMALL_FILES if (directory / each).is_file()}
        files = tuple(_weight_file(directory / each) for each in weight_files(directory))
    manifest = Manifest(name, "files", str(directory), files, small)
    if not manifest.tensors:
        raise ModelError(f"the safetensors files in {directory} hold no tensors. Copy or download the model again.")
    return manifest


def weight_files(directory: Path) -> list[str]:
    """The names of the safetensors files that are the model. Raises ModelError where there are none, or not all."""
    if (directory / INDEX).is_file():
        here = [path.name for path in directory.iterdir()]
        return indexed_files((directory / INDEX).read_text(), str(directory / INDEX), here)
    if (directory / SINGLE).is_file():
        return [SINGLE]
    # the same weights again, as their makers published them beside the Hugging Face form
    found = sorted(path.name for path in directory.glob("*.safetensors") if not path.name.startswith("consolidated"))
    if not found:
        raise ModelError(no_safetensors(str(directory), sorted(path.name for path in directory.iterdir())))
    return [plain_name(each) for each in found]


def indexed_files(index: str, where: str, here: list[str]) -> list[str]:
    """The files that an index names. Raises ModelError for what is no index, and where not all of them are ``here``."""
    try:
        named = set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{where} is no index of safetensors files ({error!r}). Get it again.") from error
    names = sorted(map(plain_name, named))
    if absent := sorted(set(names) - set(here)):
        raise ModelError(
            f"{where} names {len(names)} files, but {len(absent)} of them are not beside it, such as {absent[0]}. "
            "Copy or download the rest."
        )
    return names


def no_safetensors(where: str, here: list[str]) -> str:
    """The sentence for a model without weights that can be read in parts; ``here`` is what it has."""
    others = [name for pattern in OTHER_WEIGHTS for name in fnmatch.filter(here, pattern)]
    if not others:
        return f"{where} has a config.json but no safetensors files. Copy or download the weights too."
    return (
        f"{where} has its weights as {others[0]}, and only safetensors can be read in parts. Convert it once: "
        f'`AutoModelForCausalLM.from_pretrained("{where}").save_pretrained("new-directory")`.'
    )


def _weight_file(path: Path) -> WeightFile:
    found = path.stat()
    return WeightFile(path.name, found.st_size, found.st_mtime_ns, read_header(path))


def _no_config(directory: Path) -> str:
    if any(directory.glob("adapter_config.json")):
        return (
            f"{directory} holds an adapter, not a model. Merge it into its base model first: "
            "`PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…)`."
        )
    return (
        f"{directory} has no config.json, so it is no model in Hugging Face form. Name the directory that "
        "`save_pretrained` or `hf download` wrote, a GGUF file, or an id of the hub such as org/name."
    )
