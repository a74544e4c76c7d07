"""All surfaces by name."""

from __future__ import annotations

import importlib

from .running import Outcome, run

# those that do more for each input get fewer
SHARES = {"stage": 0.1}
# where each is opened
SURFACES = {
    "invites": "invites:opened",
    "inbox": "inbox:inbox",
    "replies": "inbox:replies",
    "entries": "inbox:entries",
    "requests": "requests:opened",
    "frames": "frames:frames",
    "door": "frames:door",
    "stage": "frames:stage",
    "commands": "gate:commands",
    "proxy": "gate:proxy",
}


def measure(name: str, inputs: int, seed: int) -> Outcome:
    """Give one surface so many inputs, or its share of them."""
    module, _, opened = SURFACES[name].partition(":")
    return run(
        getattr(importlib.import_module(f".{module}", __package__), opened), round(inputs * SHARES.get(name, 1)), seed
    )
