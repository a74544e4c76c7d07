"""What may be given as configs: a list of them, or a sentence that says what was meant instead."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kalavai_nb.errors import OptionError


def read_configs(configs: Iterable[Any]) -> list[Any]:
    """The configs as a list. Raises OptionError for what has no end, no entries, or was meant otherwise."""
    if isinstance(configs, Mapping):
        raise OptionError(
            "pool.map wants a list of configs, got one dict. For every combination of its values: "
            "pool.sweep(fn, {…}, search='grid', metric=…); for one config alone: [config]."
        )
    if isinstance(configs, (str, bytes)):
        raise OptionError(f"pool.map wants a list of configs, got a text. For one config alone: [{configs!r:.40}].")
    if type(configs).__name__ == "DataFrame":
        raise OptionError(
            "pool.map wants a list of configs, got a DataFrame: df.to_dict('records') has a dict per row."
        )
    if not isinstance(configs, Collection):
        raise OptionError(
            f"pool.map wants a list of configs, got {configs!r:.60} of type {type(configs).__name__}; "
            "give an iterator as list(…), so that the sweep knows how many trials there are."
        )
    found = list(configs)
    if not found:
        raise OptionError("pool.map wants at least one config, got an empty list.")
    return found
