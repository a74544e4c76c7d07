"""A plan as plain records: for DataFrames, JSON and whoever else reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kalavai_nb.planner.split import Split, Stage

if TYPE_CHECKING:
    from kalavai_nb.planner.growth import Outlook
    from kalavai_nb.planner.plan import Plan
    from kalavai_nb.planner.rows import Row


def plan_record(plan: Plan) -> dict[str, Any]:
    """All of a plan."""
    shape = plan.shape
    return {
        "model": shape.name,
        "params": shape.params,
        "active_params": shape.active_params,
        "layers": len(shape.layers),
        "kv_bytes_per_token": shape.kv_bytes(1),
        "max_len": plan.max_len,
        "max_batch": plan.max_batch,
        "devices": [{"name": seat.name, "free_bytes": seat.free_bytes} for seat in plan.seats],
        "quant": plan.quant.name,
        "fits": plan.fits,
        "shortfall": _shortfall_record(plan),
        "stages": stage_records(plan.split),
        "quants": quant_records(plan),
        "years": outlook_records(plan.outlook),
        "assumptions": list(plan.assumptions),
    }


def quant_records(plan: Plan) -> list[dict[str, Any]]:
    """One record for each quantisation, most bits first."""
    return [_quant_record(row) for row in plan.rows]


def stage_records(split: Split | None) -> list[dict[str, Any]]:
    """One record for each stage, in the order of the ring."""
    return [_stage_record(stage) for stage in split.stages] if split else []


def outlook_records(outlook: Outlook | None) -> list[dict[str, Any]]:
    """One record for each preset, the chosen one first."""
    if outlook is None:
        return []
    return [
        {
            "preset": rates.name,
            "model_growth": rates.model,
            "gpu_growth": rates.gpu,
            "years": outlook.years,
            "devices_now": outlook.now,
            "ratio": rates.ratio(outlook.years),
            "devices": rates.devices(outlook.now, outlook.years),
            "source": rates.source,
        }
        for rates in outlook.all
    ]


def _quant_record(row: Row) -> dict[str, Any]:
    quality = row.quant.qualities[0] if row.quant.qualities else None
    return {
        "quant": row.quant.name,
        "bits_per_weight": row.quant.bits,
        "bits_source": row.quant.bits_source,
        "weights_bytes": row.weights_bytes,
        "total_bytes": row.total_bytes,
        "at_least": row.at_least,
        "devices": row.devices,
        "fits": row.fits,
        "tokens_per_second_bound": row.speed.tokens_per_second if row.speed else None,
        "tokens_per_second_pipelined_bound": row.speed.tokens_per_second_pipelined if row.speed else None,
        "prefill_tokens_per_second_bound": row.speed.prefill_tokens_per_second if row.speed else None,
        "perplexity_rise": quality.rise if quality else None,
        "perplexity_source": quality.source if quality else None,
        **{f"devices_{size}GB": devices for size, devices in row.by_size.items()},
    }


def _stage_record(stage: Stage) -> dict[str, Any]:
    return {
        "device": stage.device.name,
        "start": stage.start,
        "end": stage.end,
        "weights_bytes": stage.weights_bytes,
        "kv_bytes": stage.kv_bytes,
        "memory_bytes": stage.memory_bytes,
        "free_bytes": stage.device.free_bytes,
        "seconds_per_token": stage.seconds_per_token,
    }


def _shortfall_record(plan: Plan) -> dict[str, Any] | None:
    if plan.shortfall is None:
        return None
    return {
        "sentence": str(plan.shortfall),
        "missing_bytes": plan.shortfall.missing_bytes,
        "fitting_quant": plan.shortfall.fitting_quant,
        "more_devices": plan.shortfall.more_devices,
        "device_bytes": plan.shortfall.device_bytes,
    }
