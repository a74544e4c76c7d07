"""The shape of a Hugging Face model, counted: built and run once on torch's meta device, where nothing has numbers.

So each architecture tells by itself what its layers hold and what its caches keep, whatever their kind.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from logging import CRITICAL
from typing import Any

from kalavai_nb.errors import ModelError
from kalavai_nb.planner.shape import DTYPE_BYTES, LayerShape, ModelShape

_TOKENS = 3
_ROUTED = re.compile(r"(^|\.)experts\.")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k", "top_k")
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")


@lru_cache(maxsize=64)
def config_shape(config_json: str, name: str) -> ModelShape:
    """The shape of the model that a config (as JSON) describes. Raises ModelError for one that cannot be built."""
    import torch
    import transformers

    given: dict[str, Any] = json.loads(config_json)
    try:
        config = transformers.AutoConfig.for_model(**given)
        model = _build(config)
    # what a class makes of a config that is not its own is its own affair
    except Exception as error:
        kind = ", ".join(given.get("architectures") or ()) or given.get("model_type") or "a config without model_type"
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"transformers {transformers.__version__} builds no causal language model of {name} ({kind}): {why}."
        ) from None
    text = config.get_text_config(decoder=True)
    layers, tail = _layers(model, text.num_hidden_layers, torch)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    head_params = _count(head.parameters()) if head is not None else _count(embedding.parameters())
    tied = head is None or bool(getattr(text, "tie_word_embeddings", False)) or head.weight is embedding.weight
    dtype = _dtype(given, text)
    caches, assumed = _caches(model, text, len(layers), torch)
    own = [_count(layer.parameters()) for layer in layers]
    total = _count(model.parameters()) - (head_params if tied and head.weight is not embedding.weight else 0)
    return ModelShape(
        name=name,
        layers=tuple(_layer(layer, text, cache, dtype) for layer, cache in zip(layers, caches, strict=True)),
        embedding_params=total - sum(own) - tail - (0 if tied else head_params),
        norm_params=tail,
        head_params=head_params,
        tied=tied,
        hidden_size=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        dtype=dtype,
        assumed="; ".join(filter(None, [assumed, _packed(given)])),
    )


def _build(config: Any) -> Any:
    import torch
    import transformers

    own = copy.deepcopy(config)
    # how experts are called here, not what they are: this one runs without numbers
    own._experts_implementation = "batched_mm"
    with _quiet(), torch.device("meta"):
        automatic: Any = transformers.AutoModelForCausalLM
        return automatic.from_config(own, dtype=torch.bfloat16).eval()


def _layers(model: Any, count: int, torch: Any) -> tuple[Any, int]:
    """The list of layers, and the parameters of what comes after it beside it: the final norm."""
    found = [
        (parent, child)
        for parent in model.modules()
        for child in parent.children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == count
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no list of {count} layers, so that it cannot be cut into stages.")
    parent, layers = max(found, key=lambda pair: _count(pair[1].parameters()))
    beside = list(parent.children())
    after = beside[next(at for at, child in enumerate(beside) if child is layers) + 1 :]
    # embeddings that are listed late are still needed first
    norms = [child for child in after if not isinstance(child, (torch.nn.Embedding, torch.nn.ModuleList))]
    return layers, sum(_count(norm.parameters()) for norm in norms)


def _layer(layer: Any, config: Any, cache: tuple[int, int, int | None], dtype: str) -> LayerShape:
    per_token, fixed, window = cache
    size = DTYPE_BYTES[dtype]
    active = _count(layer.parameters()) - _idle(layer, config)
    return LayerShape(_count(layer.parameters()), active, per_token * size, window, fixed * size)


def _idle(layer: Any, config: Any) -> int:
    """Parameters of those experts that a token is not sent to."""
    chosen = next((found for key in _CHOSEN if isinstance(found := getattr(config, key, None), int)), None)
    if chosen is None:
        return 0
    declared = next((found for key in _EXPERTS if isinstance(found := getattr(config, key, None), int)), chosen)
    idle = 0.0
    for name, tensor in layer.named_parameters():
        if _ROUTED.search(name):
            # fused experts are the first dimension of one tensor
            experts = tensor.shape[0] if tensor.dim() == 3 else declared
            idle += tensor.numel() * (1 - min(chosen, experts) / max(1, experts))
    return round(idle)


def _caches(model: Any, config: Any, count: int, torch: Any) -> tuple[list[tuple[int, int, int | None]], str]:
    """Of each layer's cache: numbers per token, numbers whatever the length, window; and what is assumed of them."""
    try:
        fewer, more = (_kept(model, tokens, torch) for tokens in (_TOKENS, _TOKENS + 1))
    # a model that asks for the numbers themselves cannot be run without them
    except Exception:
        return _usual_caches(
            config, count
        ), "the KV cache is an upper estimate: keys and values of every head, no window"
    found = [
        (each := max(0, many - few), max(0, few - _TOKENS * each), window)
        for (few, window), (many, _) in zip(fewer, more, strict=True)
    ]
    if len(found) == count:
        return found, ""
    whole = [-(-sum(cache[at] or 0 for cache in found) // count) for at in (0, 1)]
    return [(whole[0], whole[1], None)] * count, "the KV cache is spread evenly over the layers"


def _kept(model: Any, tokens: int, torch: Any) -> list[tuple[int, int | None]]:
    """How many numbers each layer's cache holds after so many tokens, and its window."""
    with _quiet(), torch.no_grad():
        output = model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"), use_cache=True)
        # transformers is about to rename it
        cache = getattr(output, "cache", None) or output.past_key_values
    return [(_numbers(vars(layer).values(), torch), _window(layer)) for layer in cache.layers]


def _window(layer: Any) -> int | None:
    window = getattr(layer, "sliding_window", None)
    return max(1, int(window)) if window is not None else None


def _numbers(values: Iterable[Any], torch: Any) -> int:
    found = 0
    for value in values:
        if torch.is_tensor(value):
            found += value.numel() if value.is_floating_point() else 0
        elif isinstance(value, (list, tuple)):
            found += _numbers(value, torch)
        elif isinstance(value, dict):
            found += _numbers(value.values(), torch)
    return found


def _usual_caches(config: Any, count: int) -> list[tuple[int, int, int | None]]:
    heads = config.num_attention_heads
    usual = config.hidden_size // heads
    layers = getattr(config, "per_layer_config", None) or [config]
    each = list(layers.values()) if isinstance(layers, dict) else list(layers)
    head_size = max(getattr(layer, "head_dim", None) or usual for layer in each)
    per_token = 2 * max(getattr(layer, "num_key_value_heads", None) or heads for layer in each) * head_size
    return [(per_token, 0, None)] * count


def _dtype(given: dict[str, Any], text: Any) -> str:
    named = given.get("dtype") or given.get("torch_dtype") or getattr(text, "dtype", None) or "bfloat16"
    name = str(named).removeprefix("torch.")
    return name if name in DTYPE_BYTES else "bfloat16"


def _packed(given: dict[str, Any]) -> str:
    method = (given.get("quantization_config") or {}).get("quant_method")
    return f"its files are quantised by {method}; weights are counted as they are without" if method else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers says of a model that runs is not meant for one that is counted."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(CRITICAL)
        try:
            yield
        finally:
            logging.set_verbosity(level)


def _count(parameters: Iterable[Any]) -> int:
    return sum(tensor.numel() for tensor in parameters)
