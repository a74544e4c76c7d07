"""How fast it can be at most: each token reads all weights that it meets, and crosses each link."""

from __future__ import annotations

from dataclasses import dataclass

from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.split import Split


@dataclass(frozen=True)
class Speed:
    """Upper bounds. ``tokens_per_second`` is of one sequence; ``tokens_per_second_pipelined`` of as many as there are
    stages, one in each (batches share the reading of weights and can be faster); ``prefill_tokens_per_second`` is what
    the link lets through of a prompt, None on one device.
    """

    tokens_per_second: float | None
    tokens_per_second_pipelined: float | None
    prefill_tokens_per_second: float | None


def bound(shape: ModelShape, split: Split, link_bits_per_second: float) -> Speed:
    """What memory and links allow."""
    seconds = [stage.seconds_per_token for stage in split.stages]
    known = [each for each in seconds if each is not None]
    prefill = None
    if len(split.stages) > 1:
        prefill = link_bits_per_second / (8 * shape.hidden_size * shape.dtype_bytes)
    if len(known) < len(seconds):
        return Speed(None, None, prefill)
    return Speed(1 / (sum(known) + split.ring_seconds), 1 / max(known), prefill)
