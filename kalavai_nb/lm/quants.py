"""How weights can be held on the devices of a loaded model, with the bits that were measured there."""

from __future__ import annotations

from kalavai_nb.planner.quants import Quant

NAMES = ("int8", "int4")


def quants_on_devices() -> tuple[Quant, ...]:
    """The most precise first."""
    # imports torch, so not with this module
    from kalavai_nb.worker.stage.quant import bits_per_weight

    return tuple(Quant(name, bits_per_weight(name), "measured on SmolLM2-135M") for name in NAMES)


def quant_named(name: str | None) -> Quant | None:
    """None is the model's own dtype."""
    return next((quant for quant in quants_on_devices() if quant.name == name), None)
