"""Which tensor of a GGUF file becomes which of a Hugging Face model, and how: by transformers' own tables."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kalavai_nb.errors import ModelError

Shape = tuple[int, ...]
# llama.cpp's models of vision and adapters are their own files; the tables below do not cover the rest
_SIBLINGS = {"clip": "the part of a model that sees images", "adapter": "an adapter"}


@dataclass(frozen=True)
class Plan:
    """``shapes`` of the tensors of the model; ``targets`` of the file's tensors; ``processor`` undoes what llama.cpp
    did to their values."""

    shapes: dict[str, Shape]
    targets: dict[str, str]
    processor: Any

    def target(self, gguf_name: str) -> str | None:
        """The model's tensor that this one of the file is, or is a part of."""
        return self.targets.get(gguf_name) or self.targets.get(gguf_name.removesuffix(".weight"))


def plan(model: Any, architecture: str, gguf_names: Iterable[str]) -> Plan:
    """How the tensors of a file fill a model that is on the meta device.

    Raises ModelError where one of the model's tensors has nothing in the file.
    """
    tables = _tables(architecture)
    processor = tables.TENSOR_PROCESSORS.get(architecture, tables.TensorProcessor)(config=model.config.to_dict())
    try:
        targets = tables.get_gguf_hf_weights_map(_Outline(model, 1), processor)
    except NotImplementedError as error:
        raise ModelError(unsupported(architecture)) from error
    made = Plan(dict(_own_tensors(model)), targets, processor)
    filled = {made.target(name) for name in gguf_names}
    if absent := [name for name in made.shapes if name not in filled]:
        raise ModelError(
            f"the GGUF file has nothing for {len(absent)} tensors of {type(model).__name__}, such as {absent[0]}: "
            f"transformers cannot map its architecture ({architecture}) yet. Take the model in Hugging Face form."
        )
    return made


def unsupported(architecture: str) -> str:
    """The sentence for a file whose architecture is not known."""
    what = _SIBLINGS.get(architecture)
    if what:
        return f"this GGUF file is {what}, not a model. Name the file of the language model itself."
    return (
        f"GGUF files of the architecture {architecture or '(none named)'} cannot be converted. "
        "Take the model in Hugging Face form."
    )


def _own_tensors(model: Any) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of what a file of this model holds: a tensor that two places share is there once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            yield name, tuple(tensor.shape)
        seen.add(id(tensor))


def _tables(architecture: str) -> Any:
    """transformers' tables of names and processors. Raises ModelError where they do not cover this architecture.

    It moves architectures, one by one, to a loader of whole models. The weights of one that has left these tables would
    be taken as llama.cpp permuted them: a model that speaks nonsense.
    """
    moved = _entries("transformers.integrations.gguf", "GGUF_ARCHS") or ()
    processors = _entries("transformers.modeling_gguf_pytorch_utils", "TENSOR_PROCESSORS")
    if processors is None or (architecture in moved and architecture not in processors):
        raise ModelError(unsupported(architecture))
    return importlib.import_module("transformers.modeling_gguf_pytorch_utils")


def _entries(module: str, table: str) -> Any:
    """A table of transformers', or None where this version of it has none."""
    try:
        return getattr(importlib.import_module(module), table)
    except (ImportError, AttributeError):
        return None


class _Outline:
    """A model as the table of names needs it: its tensors, and those of its children.

    The table is built anew for every module below, seconds for a small model, though names match at the top or, where
    llama.cpp converted the model without its head, one below it.
    """

    def __init__(self, module: Any, depth: int) -> None:
        self.config, self.state_dict = getattr(module, "config", None), module.state_dict
        self._module, self._depth = module, depth

    def named_children(self) -> list[tuple[str, _Outline]]:
        if not self._depth:
            return []
        return [(name, _Outline(child, self._depth - 1)) for name, child in self._module.named_children()]
