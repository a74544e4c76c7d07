"""Loading the tensors of one stage: only those, converted on the way as transformers does, layer by layer.

The model is built without memory (on ``meta``) and cut, then filled. transformers' own conversion fuses what files keep
apart, such as one tensor per expert, so a file is read as ``from_pretrained`` would read it.
"""

from __future__ import annotations

import ctypes
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import ContextManagers, LoadStateDictConfig

from kalavai_nb.errors import ModelError
from kalavai_nb.worker.stage.cut import Cut, check_supported, cut
from kalavai_nb.worker.stage.few_rows import quicken
from kalavai_nb.worker.stage.quant import check_quant, quantise
from kalavai_nb.worker.stage.tensor_files import FileTensor, tensors_in

Progress = Callable[[int, int], None]


def tensors_of(directory: Path, start: int, end: int) -> set[str]:
    """Names in the safetensors files that layers [start, end) need; reads headers only."""
    found = tensors_in(directory)
    stage = hollow(directory, start, end, "auto", found)
    return {name for names in _Wanted(stage).by_unit(found).values() for name in names}


def load(
    directory: Path, start: int, end: int, *, dtype: str, device: torch.device, quant: str | None, on_progress: Progress
) -> Cut:
    """Layers [start, end) of the model in this directory, on the device, ready to run."""
    if quant:
        check_quant(quant)
    found = tensors_in(directory)
    # a mixture's fused product would unpack all experts of a layer at once
    stage = hollow(directory, start, end, dtype, found, experts="eager" if quant else None)
    wanted = _Wanted(stage)
    units = wanted.by_unit(found)
    total = sum(found[name].bytes for names in units.values() for name in names)
    count = _Count(total, on_progress)
    missing = set(stage.model.state_dict())
    for unit, names in units.items():
        info = wanted.fill({name: replace(found[name], on_read=count) for name in names}, device)
        missing &= info.missing_keys
        _refuse(directory, info.mismatched_keys, "of another shape than the config says")
        if quant:
            # as soon as it is there, so that no two layers are in memory unquantised
            quantise(stage.model.get_submodule(unit), quant)
        _give_back()
    _finish(stage.model, missing, device, directory)
    quicken(stage.model)
    return stage


def hollow(
    directory: Path,
    start: int,
    end: int,
    dtype: str,
    found: dict[str, FileTensor] | None = None,
    experts: str | None = None,
) -> Cut:
    """The cut model without a byte of weights."""
    config = AutoConfig.from_pretrained(directory)
    check_supported(config)
    config.dtype = _dtype(dtype, config, tensors_in(directory) if found is None else found)
    if experts:
        config._experts_implementation = experts
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with ContextManagers(kind.get_init_context(config.dtype, False, False, None)):
        model = kind(config)
    return cut(model.eval(), start, end)


class _Count:
    """Adds up bytes for the progress; transformers reads from several threads, but one at a time counts well enough."""

    def __init__(self, total: int, on_progress: Progress) -> None:
        self._read, self._total, self._on_progress = 0, total, on_progress

    def __call__(self, read: int) -> None:
        self._read += read
        self._on_progress(self._read, self._total)


def _dtype(dtype: str, config: Any, found: dict[str, FileTensor]) -> torch.dtype:
    """``auto`` is what the config says, else what the files hold."""
    if dtype != "auto":
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise ModelError(f"dtype={dtype!r} is no type of weights; try float32, bfloat16, float16 or auto.")
        return named
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    return next((t.dtype for t in found.values() if t.dtype.is_floating_point), torch.float32)


class _Wanted:
    """Which names of files go where in the cut model."""

    def __init__(self, stage: Cut) -> None:
        self._stage, self._model = stage, stage.model
        self._mapping = get_model_conversion_mapping(self._model)
        self._renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        self._empty = self._model.state_dict()

    def by_unit(self, found: dict[str, FileTensor]) -> dict[str, list[str]]:
        """Names of our tensors, by the part of the model that can be filled at once: a layer, or what is no layer."""
        layers = self._stage.layers_prefix
        units = defaultdict(list)
        for name in found:
            if target := self._target(name):
                inside = target.removeprefix(layers)
                units[layers + inside.split(".")[0] if inside != target else ""].append(name)
        return dict(units)

    def fill(self, tensors: dict[str, FileTensor], device: torch.device) -> Any:
        dtype = self._model.config.dtype
        config = LoadStateDictConfig(
            device_map={"": device},
            dtype=dtype,
            dtype_plan=self._model._get_dtype_plan(dtype),
            weight_mapping=get_model_conversion_mapping(self._model),
        )
        with _no_bar():
            info, _ = convert_and_load_state_dict_in_model(self._model, tensors, config)
        return info

    def _target(self, name: str) -> str | None:
        """The (first) tensor of our model that this name goes to; the same steps as in transformers' loading."""
        prefix, empty = self._model.base_model_prefix, self._empty
        target, _ = rename_source_key(name, self._renamings, self._converters, prefix, empty)
        if target not in empty and name in empty:
            target = name
        return target if target in empty else None


@contextmanager
def _no_bar() -> Iterator[None]:
    """transformers draws a bar per call, and we call once per layer."""
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def _give_back() -> None:
    """Hand freed memory back to the system: what experts were fused from, and weights before they were packed.

    The C library keeps it otherwise, in pieces that nothing later fits in: two thirds of a stage, measured on mixtral.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _finish(model: Any, missing: set[str], device: torch.device, directory: Path) -> None:
    """Give the model what is in no file: buffers that are computed, and a head that is the embeddings."""
    tied = set(model.all_tied_weights_keys)
    ignored = set() if not model._keys_to_ignore_on_load_missing else _matching(model, missing)
    _refuse(directory, missing - tied - ignored, "missing")
    device_map = {"": device}
    model._move_missing_keys_from_meta_to_device(missing, device_map, None, None)
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in missing | computed:
            tensor._is_hf_initialized = True
    model._initialize_missing_keys(False)
    if tied:
        model.tie_weights(missing_keys=missing, recompute_mapping=False)
    _refuse(directory, {n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta}, "missing")
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _matching(model: Any, names: set[str]) -> set[str]:
    return {name for name in names if any(re.search(p, name) for p in model._keys_to_ignore_on_load_missing)}


def _refuse(directory: Path, names: Any, what: str) -> None:
    if not names:
        return
    some = ", ".join(str(name[0] if isinstance(name, tuple) else name) for name in sorted(names)[:5])
    raise ModelError(f"{len(names)} tensors of the model in {directory} are {what}: {some}. Download the model again.")
