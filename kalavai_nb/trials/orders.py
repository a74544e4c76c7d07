"""Orders for trials, as workers understand them; the content they refer to goes ahead of them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kalavai_nb.blobs import Packed
from kalavai_nb.engine import Engine, Message
from kalavai_nb.state import Device
from kalavai_nb.trials.content import Content
from kalavai_nb.trials.options import MapOptions
from kalavai_nb.trials.record import Record
from kalavai_nb.trials.slots import Slot

# a larger config goes as content of its own, past the stream of messages
INLINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Function:
    """What is called for each trial: its content, and whether it wants the trial beside the config."""

    name: str
    packed: Packed
    takes_trial: bool

    @cached_property
    def uses_torch(self) -> bool:
        # the pickle names the modules that the function uses
        return b"torch" in bytes(self.packed.frames[0])


class Orders:
    """Writes the orders of one run of a sweep."""

    def __init__(self, engine: Engine, run: str, function: Function, options: MapOptions, verdicts: bool) -> None:
        self._engine, self._run, self._function, self._options = engine, run, function, options
        self._verdicts = verdicts
        # under a name of its own in each run, so that forgetting it takes it from no other
        self._content = function.packed.renamed()
        self._placed: dict[int, list[tuple[str, tuple[Device, ...]]]] = {}

    def give(self, slot: Slot, record: Record, indices: Iterable[int]) -> None:
        """Hand these trials to a slot. Raises PoolClosed where its worker is gone."""
        self._engine.place([self._content], slot.devices)
        options = {"isolate": self._options.isolate, "timeout_seconds": self._options.timeout_seconds}
        message = {
            "op": "kn_trials",
            "owner": self._engine.owner,
            "run": self._run,
            "lease": slot.lease,
            "selectors": [device.selector for device in slot.devices],
            "options": options,
            "uses_torch": self._function.uses_torch,
            "orders": [self._order(slot, record, index) for index in indices],
        }
        self._engine.tell([(slot.worker, message)])

    def clean_up(self, index: int) -> None:
        """Let machines forget what the orders of this trial referred to."""
        for name, devices in self._placed.pop(index, ()):
            self._engine.drop([name], devices)

    def close(self, devices: Iterable[Device]) -> None:
        """Let machines forget the function."""
        for index in list(self._placed):
            self.clean_up(index)
        self._engine.drop([self._content.blob.digest], devices)

    def _order(self, slot: Slot, record: Record, index: int) -> Message:
        blob = self._content.blob
        attempt = record.trials[index].attempts + 1
        checkpoint = record.checkpoint(index)
        return {
            "index": index,
            "attempt": attempt,
            "seed": self._seed(index),
            "config": self._sent(slot, index, record.config(index)),
            "checkpoint": self._sent(slot, index, checkpoint, inline_bytes=0) if checkpoint else None,
            "takes_trial": self._function.takes_trial,
            "verdicts": self._verdicts,
            "device": slot.devices[0].torch_name,
            "gpus": self._options.gpus if slot.need.share == self._options.gpus else slot.need.count,
            "fn": [blob.digest, list(blob.sizes)],
            "directory": f"{self._run}-{index}-{attempt}-{secrets.token_hex(2)}",
        }

    def _sent(self, slot: Slot, index: int, content: Content, inline_bytes: int = INLINE_BYTES) -> Any:
        """Content as it stands in an order: itself, or the name under which the slot's machine has it."""
        if not content.file and len(content.inline) < inline_bytes:
            return [content.inline, list(content.sizes)]
        # under a name of its own as well: a cell may have sent the same
        packed = content.packed().renamed()
        self._engine.place([packed], slot.devices)
        self._placed.setdefault(index, []).append((packed.blob.digest, slot.devices))
        return {"digest": packed.blob.digest, "sizes": list(content.sizes)}

    def _seed(self, index: int) -> int:
        if self._options.seed is None:
            return secrets.randbits(63)
        return int.from_bytes(hashlib.sha256(f"{self._options.seed}/{index}".encode()).digest()[:8]) >> 1
