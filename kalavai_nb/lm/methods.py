"""What a pool can do with models: ``pool.load`` and ``pool.plan``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kalavai_nb.engine import Engine
from kalavai_nb.errors import OptionError
from kalavai_nb.lm.load import load, read_gpus
from kalavai_nb.lm.quants import NAMES as QUANTS
from kalavai_nb.lm.settings import Settings
from kalavai_nb.lm.sharded_lm import ShardedLM
from kalavai_nb.options import RunOptions
from kalavai_nb.planner.cards import bandwidth_of
from kalavai_nb.planner.plan import Plan, plan
from kalavai_nb.planner.seats import Seat
from kalavai_nb.planner.shape import DTYPE_BYTES as DTYPES
from kalavai_nb.state import Device


class ModelMethods:
    """The part of `kalavai_nb.Pool` that is about models."""

    _models: Sequence[ShardedLM] = ()

    @property
    def engine(self) -> Engine:
        """The connection to the pool."""
        raise NotImplementedError

    @property
    def devices(self) -> list[Device]:
        """The devices of the pool."""
        raise NotImplementedError

    def check(self, *, use: bool = False) -> None:
        """Raise PoolClosed where nothing can be asked of this pool any more. Before ``use``, say what will break."""
        raise NotImplementedError

    def load(
        self,
        model: str | Path,
        *,
        gpus: int | str = "auto",
        dtype: str = "auto",
        quant: str | None = None,
        max_len: int = 4096,
        max_batch: int = 8,
        replicas: int = 1,
        spares: int | str = "auto",
        wait: str | float = 60.0,
        show: bool = True,
    ) -> ShardedLM:
        """Load a causal language model, on one device where it fits, else spread over the fewest that hold it.

        Parameters
        ----------
        model : str or Path
            A directory in Hugging Face form (``config.json``, safetensors, tokenizer), a GGUF file, or the id of a
            model on the hub (``org/name`` or ``org/name@revision``).
        gpus : int or "auto"
            On how many devices; "auto" is the fewest that hold it.
        dtype : str
            ``"float32"``, ``"bfloat16"``, ``"float16"``; "auto" is what the model says (bfloat16 for GGUF files).
        quant : {None, "int8", "int4", "auto"}
            Quantise weights on the devices; "auto" takes the most precise that fits.
        max_len : int
            Tokens of a prompt and its generation, at most.
        max_batch : int
            Sequences that are generated at once; more wait for their turn.
        replicas : int
            So many copies, which share the requests.
        spares : int or "auto"
            Free devices that are kept ready to take a lost one's place; "auto" is one where the model spans several.
            They are given back when somebody else waits for a device.
        wait : str or float
            How long to wait for other devices when some are lost and the rest cannot hold the model: seconds, or
            ``"2m"`` as in ``%%pool``.
        show : bool
            Show progress.

        Returns
        -------
        ShardedLM
            Loaded; it holds its devices until ``close()``.

        Raises
        ------
        ModelError
            The model cannot be found, read or split; DoesNotFit where the pool's devices cannot hold it, with by how
            much and what would do.
        OptionError
            An option cannot be meant.
        NotEnoughDevices
            The pool does not have so many devices.
        MissingExtra
            ``pip install 'kalavai-nb[models]'``
        """
        if quant not in (None, "auto", *QUANTS):
            raise OptionError(f"quant= wants {', '.join(map(repr, QUANTS))}, 'auto' or None; got {quant!r}.")
        if dtype not in ("auto", *DTYPES):
            raise OptionError(f"dtype= wants 'auto', {', '.join(map(repr, DTYPES))}; got {dtype!r}.")
        for name, value in (("max_len", max_len), ("max_batch", max_batch), ("replicas", replicas)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}= wants a whole number of at least 1; got {value!r}.")
        stages, patience = read_gpus(gpus), RunOptions().updated({"wait": wait}).wait
        self.check(use=True)
        settings = Settings(dtype, quant, stages, max_len, max_batch, 0, math.inf if patience is None else patience)
        loaded = load(self.engine, model, settings, replicas, spares, show)
        self._models = [*self.models, loaded]
        return loaded

    @property
    def models(self) -> list[ShardedLM]:
        """The models that this notebook has loaded here and not closed."""
        return [model for model in self._models if not model.is_closed]

    def plan(self, model: Any, **options: Any) -> Plan:
        """How many of this pool's devices a model needs, where its layers would be, how fast it could be: `kn.plan`.

        All devices count with all their memory, whoever holds them now. Nothing is loaded. Options and errors are its.
        """
        return plan(model, seats_of(self.devices), **options)


def seats_of(devices: list[Device]) -> list[Seat]:
    """Devices of a pool as the planner sees them."""
    return [Seat(str(device), device.memory_bytes, None, bandwidth_of(device), device.id) for device in devices]
