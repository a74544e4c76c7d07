"""From what a person names to a model that runs: found, planned, leased, loaded."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kalavai_nb.engine import Engine
from kalavai_nb.errors import MissingExtra, ModelError, NotEnoughDevices, OptionError
from kalavai_nb.lm.progress import LoadProgress
from kalavai_nb.lm.quants import NAMES, quant_named, quants_on_devices
from kalavai_nb.lm.ring import Ring
from kalavai_nb.lm.rings import Adopt, Rings
from kalavai_nb.lm.settings import Settings
from kalavai_nb.lm.sharded_lm import ShardedLM
from kalavai_nb.planner.cards import bandwidth_of
from kalavai_nb.planner.seats import Seat
from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.shortfall import DoesNotFit
from kalavai_nb.planner.split import Split, split
from kalavai_nb.state import Device
from kalavai_nb.terminal import TERMINAL
from kalavai_nb.weights.source import ModelSource


@TERMINAL.waiting()
def load(
    engine: Engine, model: str | Path, settings: Settings, replicas: int, spares: int | str, show: bool
) -> ShardedLM:
    """See `ModelMethods.load`."""
    _require_transformers()
    _check_count(engine.snapshot().devices, settings)
    progress = LoadProgress(Path(model).name, show)
    is_loaded = False
    try:
        source = ModelSource.resolve(model, dtype=settings.dtype, on_progress=progress.converting)
        shape = _shape(source, settings)
        tokenizer, eos = _tokenizer(source), _eos(source)
        settings, count, devices = _choose(engine, shape, settings, replicas)
        settings = replace(settings, spares=(count > 1) if spares == "auto" else int(spares))
        run = f"lm-{secrets.token_hex(4)}"

        def make(number: int, adopt: Adopt) -> Ring:
            return Ring(engine, f"{run}-{number}", source, shape, settings, progress.news, adopt)

        rings = Rings(source.name, settings, count, make)
        rings.add(replicas, devices, progress.waiting, progress.draw)
        is_loaded = True
    finally:
        progress.close(is_loaded)
    return ShardedLM(run, tokenizer, eos, shape.vocabulary, rings)


def _shape(source: ModelSource, settings: Settings) -> ModelShape:
    """What it consists of; raises ModelError for an architecture that cannot be split, before anything is read."""
    from transformers import AutoConfig

    from kalavai_nb.planner.sources import shape_of
    from kalavai_nb.worker.stage.cut import check_supported

    check_supported(AutoConfig.from_pretrained(source.directory))
    if settings.quant:
        from kalavai_nb.worker.stage.quant import check_quant

        check_quant(NAMES[0])
    shape = replace(shape_of(source.directory), name=source.name)
    return shape if settings.dtype == "auto" else shape.as_dtype(settings.dtype)


def _choose(engine: Engine, shape: ModelShape, settings: Settings, replicas: int) -> tuple[Settings, int, list[str]]:
    """The quantisation, how many devices a copy takes, and which would do best: free ones, if they are enough."""
    snapshot = engine.snapshot()
    _check_count(snapshot.devices, settings)
    held = {id for lease in snapshot.leases if lease.owner != engine.owner or lease.running for id in lease.devices}
    free = [device for device in snapshot.devices if device.id not in held]
    quants = (None, *NAMES) if settings.quant == "auto" else (settings.quant,)
    shortfall: DoesNotFit | None = None
    for quant in quants:
        chosen = replace(settings, quant=quant)
        for devices in (free, snapshot.devices):
            try:
                found = _split(shape, devices, chosen)
            except DoesNotFit as error:
                shortfall = shortfall or error
                continue
            except ModelError:
                # more stages than devices are free: those that are not will have to be waited for
                if devices is snapshot.devices:
                    raise
                continue
            used = [stage.device.id for stage in found.stages]
            others = [device.id for device in devices if device.id not in used]
            return chosen, len(used), used + others[: (replicas - 1) * len(used)]
    assert shortfall is not None
    raise shortfall


def _check_count(devices: Sequence[Device], settings: Settings) -> None:
    """More than there are is refused before anything is read, and again once it was, which may have taken long."""
    if (settings.gpus or 0) > len(devices):
        raise NotEnoughDevices(
            f"gpus={settings.gpus} was asked for, but the pool has {len(devices)} devices; ask for fewer."
        )


def _split(shape: ModelShape, devices: Sequence[Device], settings: Settings) -> Split:
    seats = [Seat(str(device), device.memory_bytes, None, bandwidth_of(device), device.id) for device in devices]
    return split(
        shape,
        seats,
        quant=quant_named(settings.quant),
        max_len=settings.max_len,
        max_batch=settings.max_batch,
        stages=settings.gpus,
        quants=quants_on_devices(),
    )


def _tokenizer(source: ModelSource) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.directory)
    except Exception as error:  # some are programs of the model's authors
        raise ModelError(
            f"the tokenizer of {source.name} cannot be read: {error}. Its files (tokenizer.json and "
            "tokenizer_config.json) belong beside config.json."
        ) from None


def _eos(source: ModelSource) -> tuple[int, ...]:
    """The tokens that end a sequence, as ``generate`` of transformers takes them."""
    from transformers import AutoConfig, GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(source.directory).eos_token_id
    except OSError:
        found = AutoConfig.from_pretrained(source.directory).eos_token_id
    return tuple(found) if isinstance(found, list) else (() if found is None else (found,))


def _require_transformers() -> None:
    try:
        import safetensors
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"models need a package that is not installed here ({error}); pip install 'kalavai-nb[models]'"
        ) from None
    del safetensors


def read_gpus(gpus: int | str) -> int | None:
    """``"auto"`` (the fewest) or a number of stages. Raises OptionError."""
    if gpus == "auto":
        return None
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 1:
        raise OptionError(f"gpus= wants 'auto' or how many devices to share the layers out to; got {gpus!r}.")
    return gpus
