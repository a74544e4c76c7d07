"""What a trial's function gets as its second argument: reports, checkpoints, and facts about where it runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, TypedDict

from kalavai_nb.blobs import BlobStore, load, pack
from kalavai_nb.errors import TrialStopped
from kalavai_nb.worker.wire import Message, Wire

# a notebook that sleeps must not hold up its trials: they go on without its verdict, and heed it when it comes
VERDICT_SECONDS = 2.0


class TrialOrder(TypedDict):
    """One trial to run. ``config`` is pickled bytes, or {path, sizes} of a file; so is ``checkpoint``, or None."""

    index: int
    attempt: int
    seed: int
    config: Any
    checkpoint: Any
    takes_trial: bool
    verdicts: bool
    device: str
    gpus: float
    fn: tuple[str, list[int]]
    log: str
    directory: str


class LiveTrial:
    """The trial that runs, for the function that is called as ``fn(config, trial)``.

    Attributes
    ----------
    index : int
        Its place among the configs of the sweep.
    attempt : int
        1, or more where earlier attempts were cut off.
    seed : int
        What Python's, NumPy's and torch's random generators were seeded with before the call.
    device : str
        For ``torch.device``: ``"cuda:0"``, whichever GPU that is, or ``"cpu"``.
    gpus : float
        How many GPUs it has, or which share of one.
    """

    def __init__(self, order: TrialOrder, wire: Wire, store: BlobStore) -> None:
        self.index, self.attempt, self.seed = order["index"], order["attempt"], order["seed"]
        self.device, self.gpus = order["device"], order["gpus"]
        self._order, self._wire, self._store = order, wire, store
        self._stop = ""
        self._reporting = threading.Lock()

    def report(self, step: int, /, *wrong: object, **metrics: float) -> None:
        """Say how it goes: ``trial.report(epoch, loss=0.3)``. ``step`` should grow from report to report.

        Raises TrialStopped when the trial should end, since it was pruned or the sweep was stopped; let it through.
        Raises TypeError for a step that is no whole number, or a metric that is no number.
        """
        if wrong or not metrics or isinstance(step, bool) or not hasattr(step, "__index__"):
            raise TypeError("trial.report wants a whole number and named metrics: trial.report(epoch, loss=0.3)")
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        step = int(step)
        # one thread at a time, so that each hears the verdict on its own report
        with self._reporting:
            self._wire.send({"kind": "report", "index": self.index, "step": step, "metrics": numbers})
            self._listen(step if self._order["verdicts"] else None)
        if self._stop:
            raise TrialStopped(self._stop)

    def save(self, checkpoint: object) -> None:
        """Keep a checkpoint: whatever another attempt needs to go on from here. The last one counts.

        It is brought home as soon as it is written, so it outlives this process, device and machine. Raises what
        pickling it raises.
        """
        content = pack(checkpoint).renamed()
        self._store.keep(content)
        handed = {"digest": content.blob.digest, "sizes": list(content.blob.sizes)}
        self._wire.send({"kind": "saved", "index": self.index, "value": handed})

    def load(self, default: Any = None) -> Any:
        """What an earlier attempt of this trial saved last; ``default`` where it saved nothing."""
        checkpoint = self._order["checkpoint"]
        return default if checkpoint is None else load(checkpoint["path"], checkpoint["sizes"])

    @property
    def dir(self) -> Path:
        """A directory of this attempt. What is in it when the trial ends is brought home, to `Trial.directory`."""
        directory = Path(self._order["directory"])
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def __repr__(self) -> str:
        return f"<trial {self.index} on {self.device}, attempt {self.attempt}, process {os.getpid()}>"

    def _listen(self, step: int | None) -> None:
        """Hear what the notebook said; with ``step``, wait for its verdict about that."""
        deadline = time.monotonic() + (VERDICT_SECONDS if step is not None else 0)
        while (message := self._wire.receive(max(0.0, deadline - time.monotonic()))) is not None:
            self._stop = self._stop or str(message.get("stop", ""))
            if self._stop or (step is not None and message.get("verdict") == step):
                return


def stray(message: Message) -> bool:
    """Whether this is a word to a trial that has ended meanwhile."""
    return "index" not in message


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"trial.report wants numbers, got {name}={value!r} of type {type(value).__name__}") from None
