"""What a sweep may ask for: the options of ``pool.map`` and ``pool.sweep``, checked before anything begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.options import RunOptions
from kalavai_nb.scores import check_mode
from kalavai_nb.state import Need

WHERE = ("type", "vram", "host")


@dataclass(frozen=True)
class MapOptions:
    """The options of one sweep, as `Pool.map` explains them.

    ``metrics`` and ``modes`` go together; without metrics the single mode is about the value itself. ``where`` are the
    filters of ``%%pool``: device type, least memory in bytes, host.
    """

    gpus: float = 1
    name: str | None = None
    metrics: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("min",)
    retries: int = 0
    timeout_seconds: float | None = None
    where: tuple[str, int, str] = ("", 0, "")
    isolate: bool | str = "auto"
    max_parallel: int | None = None
    repeatable: bool = False
    resume: bool = True
    seed: int | None = None
    show: bool = True

    @property
    def metric(self) -> str | None:
        """The metric that ``best`` goes by, where there is one alone."""
        return self.metrics[0] if len(self.metrics) == 1 else None

    @property
    def mode(self) -> str:
        return self.modes[0]

    def need(self, owner: str, what: str) -> Need:
        """What one trial asks of the ledger."""
        devices = max(1, int(self.gpus))
        kind, vram_bytes, host = self.where
        return Need(
            owner,
            devices,
            kind="trial",
            per=devices,
            share=min(1.0, float(self.gpus)),
            type=kind,
            host=host,
            vram_bytes=vram_bytes,
            what=what,
        )


def read_map_options(
    *,
    gpus: float,
    metric: str | Sequence[str] | None,
    mode: str | Sequence[str],
    timeout: str | float | None,
    where: str | Mapping[str, Any] | None,
    **others: Any,
) -> MapOptions:
    """The options as they were given, read and checked. Raises OptionError with a sentence."""
    metrics = () if metric is None else (metric,) if isinstance(metric, str) else tuple(metric)
    modes = (mode,) * max(1, len(metrics)) if isinstance(mode, str) else tuple(mode)
    for each in modes:
        check_mode(each)
    if len(modes) != max(1, len(metrics)):
        raise OptionError(f"mode= has {len(modes)} entries for {len(metrics)} metrics: wanted one, or one for each.")
    options = MapOptions(
        gpus=_gpus(gpus),
        metrics=metrics,
        modes=modes,
        timeout_seconds=RunOptions().updated({"timeout": timeout}).timeout,
        where=_where(where),
        **others,
    )
    if options.isolate not in (True, False, "auto"):
        raise OptionError(f"isolate={options.isolate!r} cannot be meant: wanted True, False or 'auto'.")
    if not isinstance(options.retries, int) or options.retries < 0:
        raise OptionError(
            f"retries={options.retries!r} cannot be meant: wanted how often a failed trial is tried again."
        )
    if options.max_parallel is not None and options.max_parallel < 1:
        raise OptionError(f"max_parallel={options.max_parallel!r} cannot be meant: wanted 1 or more, or None.")
    if options.name is not None and (not isinstance(options.name, str) or not options.name.strip()):
        raise OptionError(f"name={options.name!r} cannot be meant: wanted a text that names the sweep.")
    return options


def _gpus(gpus: Any) -> float:
    number = isinstance(gpus, (int, float)) and not isinstance(gpus, bool)
    if not number or gpus <= 0 or (gpus > 1 and gpus != int(gpus)):
        raise OptionError(
            f"gpus={gpus!r} cannot be meant: wanted a share of one device for each trial, such as 0.5, or 1, 2, 3, …"
        )
    return float(gpus) if gpus < 1 else int(gpus)


def _where(where: Any) -> tuple[str, int, str]:
    if where is None:
        return ("", 0, "")
    if isinstance(where, str):
        pairs = [word.partition("=")[::2] for word in where.replace(",", " ").split()]
    elif isinstance(where, Mapping):
        pairs = [(str(key), value) for key, value in where.items()]
    else:
        raise OptionError(f"where={where!r} cannot be meant: wanted {{'type': 'A100', 'vram': 24, 'host': 'box*'}}.")
    if unknown := [key for key, _ in pairs if key not in WHERE]:
        raise OptionError(f"where= has {unknown[0]!r}, which is none of {', '.join(WHERE)}.")
    chosen = RunOptions().updated(dict(pairs))
    return (chosen.type, chosen.vram, chosen.host)
