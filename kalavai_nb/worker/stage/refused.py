"""Why some architectures cannot be cut between layers although they declare a pipeline plan.

Their layers hand on more than hidden states, or remember in a way that rows cannot share. The sweep over all
architectures of transformers (tests/benchmarks/architectures.py) found those that are named here.
"""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache

from kalavai_nb.worker.stage.layers import KINDS

_CHOSEN = "a layer hands the columns it has chosen to the layers after it"
_NAMED = {
    "deepseek_v4": "its layers remember compressed columns, of which rows cannot share a batch",
    "doge": "which of several equal tokens it masks depends on padding",
    "gemma3n_text": "its layers work on several streams at once",
    "glm_moe_dsa": _CHOSEN,
    "hrm_text": "it goes through its layers several times for a token",
    "hy_v4": _CHOSEN,
    "longcat_flash": "its layers are pairs, each with two caches",
    "minimax": "it has a cache of its own",
}


def why_refused(config: Any) -> str | None:
    """The end of the sentence "it cannot be split over devices: …"; None where it can be."""
    if reason := _NAMED.get(config.model_type):
        return reason
    if getattr(config, "hidden_size_per_layer_input", 0):
        return "every layer needs the token ids"
    if "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        return "layers use the keys and values of other layers"
    try:
        others = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) not in KINDS}
    except KeyError as kind:
        others = {str(kind)}
    return f"its layers remember in a way that rows cannot share ({', '.join(sorted(others))})" if others else None
