"""Cutting a Hugging Face causal language model between its layers, without a model of one's own.

The model keeps its ``forward``, which owns rotary embeddings, masks and layer types. Layers of other stages let their
input pass, and the list of layers keeps its length, so that indices into it and into the config still agree. Which
modules are embeddings, layers and norm is what the model itself declares, in its pipeline plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from kalavai_nb.errors import ModelError
from kalavai_nb.worker.stage.refused import why_refused


def check_supported(config: Any) -> None:
    """Raise the sentence that says why a model of this config cannot be split; reads nothing."""
    if reason := _why_not(config):
        raise ModelError(
            f"{config.model_type} cannot be split over devices: {reason}. Choose a model of another architecture "
            "(llama, mistral, qwen3, gemma3_text, gpt_oss and most others work)."
        )


def _why_not(config: Any) -> str | None:
    if not getattr(config, "base_model_pp_plan", None):
        return f"transformers {transformers.__version__} declares no pipeline plan for it"
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return "it is no causal language model of transformers"
    if getattr(config, "quantization_config", None):
        return "its files are quantised already; take the unquantised ones, and quant= to quantise them on the devices"
    return why_refused(config)


def layer_count(config: Any) -> int:
    """How many layers there are to split."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


class PassThrough(nn.Module):
    """Stands where a module of another stage was, and hands on what it is given.

    It keeps plain attributes of that module, such as its type of attention: some models look at them. ``entering`` is
    what the stage before sent: it takes the place of what the model made of its input on the way to our first layer.
    """

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        for name, value in vars(replaced).items():
            if isinstance(value, str | int | float | None) and not name.startswith("_"):
                setattr(self, name, value)
        self.entering: torch.Tensor | None = None
        self.passed: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        given: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        self.passed = given if self.entering is None else self.entering
        return self.passed


@dataclass(frozen=True)
class Cut:
    """A model of which only layers [start, end) are left, and the two places where hidden states come and go."""

    model: Any
    base: Any
    layers_name: str
    start: int
    end: int

    @property
    def layers(self) -> nn.ModuleList:
        found: nn.ModuleList = getattr(self.base, self.layers_name)
        return found

    @property
    def layers_prefix(self) -> str:
        """What names of our layers' tensors begin with."""
        inside = next(name for name, module in self.model.named_modules() if module is self.layers)
        return f"{inside}."

    def enter(self, hidden: torch.Tensor) -> None:
        """What the first of our layers is given in the next call; on every stage but the first."""
        before: Any = self.layers[self.start - 1]
        before.entering = hidden

    def passed(self) -> torch.Tensor:
        """What the last of our layers gave in the call before; on every stage but the last."""
        after: Any = self.layers[self.end]
        hidden: torch.Tensor = after.passed
        after.passed = None
        return hidden


def cut(model: Any, start: int, end: int) -> Cut:
    """Take away from the model, in place, all that layers [start, end) do not need."""
    base, total = model.base_model, layer_count(model.config)
    before, layers_name, after = _plan(base)
    if not 0 <= start < end <= total:
        raise ModelError(f"A stage of layers {start} to {end} was asked for, but the model has layers 0 to {total}.")
    layers = getattr(base, layers_name)
    if len(layers) != total:
        raise ModelError(f"{model.config.model_type} has {len(layers)} modules for {total} layers: it cannot be split.")
    for index in (*range(start), *range(end, total)):
        layers[index] = PassThrough(layers[index])
    last = end == total
    if start and not (last and _ties(model)):
        _replace(base, before)
    if not last:
        _replace(base, after)
        _replace(model, [name for name, child in model.named_children() if child is not base])
        # nothing is left to tie, and transformers would look for it
        model.all_tied_weights_keys = {}
    return Cut(model, base, layers_name, start, end)


def _plan(base: Any) -> tuple[list[str], str, list[str]]:
    """The names of modules before the layers, of the list of layers, and of modules after it."""
    names = list(base.config.base_model_pp_plan)
    [layers_name] = [name for name in names if isinstance(getattr(base, name, None), nn.ModuleList)]
    at = names.index(layers_name)
    present = [name for name in names if getattr(base, name, None) is not None]
    return [n for n in present if n in names[:at]], layers_name, [n for n in present if n in names[at + 1 :]]


def _ties(model: Any) -> bool:
    return bool(getattr(model, "all_tied_weights_keys", None))


def _replace(parent: nn.Module, names: list[str]) -> None:
    for name in names:
        setattr(parent, name, PassThrough(getattr(parent, name)))
