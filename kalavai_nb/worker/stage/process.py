"""The process of a stage: it loads its layers, then passes hidden states on until it is ended.

One thread computes and changes state. It hears of everything by one queue: orders of the owner, which come through the
worker; frames of the stage before and of the owner, which come through the door. The first stage also decides what runs
next (scheduler.py), the last one samples; with one stage, it is both.

Every link has an epoch. When a stage was lost, the owner links those that are there anew under the next one, and what
still comes of the last is dropped.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import torch

from kalavai_nb.frames import Head, Sender, dial_first, hello
from kalavai_nb.identity import CurrentIdentity, Identity
from kalavai_nb.roads import Way
from kalavai_nb.worker.stage.door import Door, round_trip_seconds
from kalavai_nb.worker.stage.fetch import Progress, fetch
from kalavai_nb.worker.stage.model import StageModel
from kalavai_nb.worker.stage.probe import probe
from kalavai_nb.worker.stage.sampler import Wishes
from kalavai_nb.worker.stage.scheduler import Scheduler, Sequence
from kalavai_nb.worker.stage.tensors import body_of, tensor_of
from kalavai_nb.worker.wire import Message, Wire

DIAL_SECONDS = 5.0
REMEMBERED_STEPS = 64


class StageProcess:
    """One stage of a model: ``wire`` leads to the worker, the door is for everybody else."""

    def __init__(self, wire: Wire, identity: CurrentIdentity, host: str, proxy: int, key: str) -> None:
        self._wire, self._identity, self._proxy = wire, identity, proxy
        self._inbox: queue.SimpleQueue[tuple[str, Head, bytearray]] = queue.SimpleQueue()
        self._model: StageModel | None = None
        self._epoch = 0
        self._next: Sender | None = None
        self._news: Sender | None = None
        self._scheduler: Scheduler | None = None
        self._wishes = Wishes()
        # nothing can be run before something comes
        self._is_idle = True
        self._running: list[int] = []
        self._busy_since: float | None = None
        self._pieces = 0
        self._held: dict[str, int] = {}
        self._steps: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        door = Door(host, identity, key, self._on_frame, self._on_news, self._on_end)
        self._say("started", pid=os.getpid(), port=door.port)
        threading.Thread(target=self._listen, name="kalavai-orders", daemon=True).start()

    def run(self) -> None:
        """Work until the worker hangs up."""
        while True:
            try:
                # what has come is heard before anything is chosen to be run
                kind, head, body = self._inbox.get(block=self._is_idle)
            except queue.Empty:
                self._guarded(self._run_next)
                continue
            self._is_idle = False
            if kind == "end":
                return
            self._guarded(self._order if kind == "order" else self._frame, head, body)

    # what comes in, on threads of its own

    def _listen(self) -> None:
        while (order := self._wire.receive()) is not None:
            if order["order"] == "ping":
                self._say("pong", **self._signs_of_life())
            else:
                self._inbox.put(("order", order, bytearray()))
        self._inbox.put(("end", {}, bytearray()))

    def _on_frame(self, head: Head, body: bytearray) -> None:
        if head.get("kind") != "ping":
            self._inbox.put(("frame", head, body))
        elif self._news:
            self._news.send({"kind": "pong", **self._signs_of_life()})

    def _on_news(self, news: Sender) -> None:
        self._news = news

    def _on_end(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._say("broken", epoch=epoch, side="before")

    # orders

    def _order(self, order: Message, _: bytearray) -> None:
        order = dict(order)
        getattr(self, f"_on_{order.pop('order')}")(**order)

    def _on_probe(self, **order: Any) -> None:
        self._say("probed", **probe(**order))

    def _on_reach(self, peers: dict[str, tuple[list[Way], str]]) -> None:
        """How far other stages are, by their names; those that cannot be reached from here are left out."""
        seconds = {}
        for name, (ways, key) in peers.items():
            try:
                seconds[name] = round_trip_seconds(ways, self._identity.context(server=False), key, self._proxy)
            except OSError:
                continue
        self._say("reached", seconds=seconds)

    def _on_load(self, manifest: Message, start: int, end: int, dtype: str, device: str, quant: str | None) -> None:
        self._model, self._held = None, {}
        started = time.monotonic()
        directory = fetch(manifest, start, end, self._say, self._next_content)
        read = Progress(self._say, "read")
        self._model = StageModel.load(directory, start, end, dtype=dtype, device=device, quant=quant, on_progress=read)
        self._held = dict(self._model.memory)
        self._say("loaded", start=start, end=end, seconds=time.monotonic() - started, **self._facts())

    def _on_link(
        self, epoch: int, next: tuple[list[Way], str] | None, stages: int, max_batch: int, piece_tokens: int
    ) -> None:
        """Forget all sequences, and connect to the next stage (None: it is this one)."""
        assert self._model is not None
        self._epoch = epoch
        if self._next:
            self._next.close()
        self._model.reset()
        self._wishes = Wishes()
        self._scheduler = Scheduler(stages, max_batch, piece_tokens) if self._model.first else None
        self._next = None
        if next:
            ways, key = next
            try:
                context = self._identity.context(server=False)
                connection = dial_first(ways, context, hello("ring", key, epoch), DIAL_SECONDS, self._proxy)
            except OSError as error:
                self._say("broken", epoch=epoch, side="after", error=str(error))
                return
            self._next = Sender(connection, lambda: self._say("broken", epoch=epoch, side="after"))
        self._say("linked", epoch=epoch)

    # frames

    def _frame(self, head: Head, body: bytearray) -> None:
        if head.get("epoch") != self._epoch or self._model is None:
            return
        kind = head["kind"]
        if kind == "piece":
            self._run(head, tensor_of(head, body))
        elif kind == "drop":
            self._drop(head["rows"])
        elif self._scheduler is None:
            return
        elif kind == "submit":
            for row, ids, made, sampling in head["sequences"]:
                self._scheduler.add(Sequence(row, tuple(ids), made, sampling))
        elif kind == "cancel":
            self._scheduler.cancel(head["rows"])
        elif kind == "tokens":
            self._scheduler.tokens_arrived(head["rows"], head["tokens"], head["done"])
        elif kind == "passed":
            self._scheduler.piece_arrived()

    def _next_content(self) -> tuple[Head, bytearray]:
        """The next piece of a file that the owner sends while this stage loads. Orders that come meanwhile wait."""
        kept = []
        while True:
            kind, head, body = self._inbox.get()
            if kind == "end":
                raise SystemExit
            if kind == "frame" and head["kind"] == "content":
                break
            kept.append((kind, head, body))
        for item in kept:
            self._inbox.put(item)
        return head, body

    # computing

    def _run_next(self) -> None:
        """What the first stage has chosen; other stages, and one that has nothing to choose, wait for what comes."""
        self._is_idle = True
        if self._scheduler is None:
            return
        piece = self._scheduler.next()
        if ended := self._scheduler.ended():
            self._drop(ended)
        if piece is None:
            return
        self._is_idle = False
        head: Head = {"kind": "piece", "epoch": self._epoch, "rows": piece.rows, "samples": piece.samples}
        if any(piece.pads):
            head["pads"] = piece.pads
        if piece.fresh:
            head["fresh"] = [(each.row, each.made, each.sampling) for each in piece.fresh]
        self._run(head, torch.tensor(piece.tokens, dtype=torch.long))

    def _run(self, head: Head, x: torch.Tensor) -> None:
        """Pass one piece through the layers of this stage, and on."""
        model = self._model
        assert model is not None
        self._wishes.begin(head.get("fresh", ()))
        self._busy_since, self._running = time.monotonic(), list(head["rows"])
        out = model.run(head["rows"], x, head.get("pads"))
        if not model.last:
            fields, body = body_of(out)
            self._pass_on({**head, **fields}, body)
        elif head["samples"]:
            self._sample(head["rows"], out)
        else:
            self._pass_on({"kind": "passed", "epoch": self._epoch})
        if x.shape[1] == 1:
            self._steps.append(time.monotonic() - self._busy_since)
        self._busy_since, self._running = None, []
        self._pieces += 1
        self._held = dict(model.memory)

    def _sample(self, rows: list[int], logits: torch.Tensor) -> None:
        tokens, done, logprobs = self._wishes.sample(rows, logits)
        head = {"kind": "tokens", "epoch": self._epoch, "rows": rows, "tokens": tokens, "done": done}
        self._pass_on(head)
        if self._news:
            self._news.send({**head, "logprobs": logprobs})

    def _drop(self, rows: list[int]) -> None:
        assert self._model is not None
        self._model.drop(rows)
        self._wishes.drop(rows)
        if not self._model.last:
            self._pass_on({"kind": "drop", "epoch": self._epoch, "rows": rows})

    def _pass_on(self, head: Head, body: Any = b"") -> None:
        """To the next stage; where this one is all there is, to itself."""
        if self._next:
            self._next.send(head, body)
        else:
            self._frame(head, bytearray(body))

    # saying

    def _facts(self) -> Head:
        steps = sorted(self._steps)
        facts: Head = {"step_seconds": steps[len(steps) // 2] if steps else None}
        return {**facts, "memory": self._held} if self._held else facts

    def _signs_of_life(self) -> Head:
        """On any thread: nothing here is looked up in the model, which the computing thread is changing."""
        since = self._busy_since
        busy = 0.0 if since is None else time.monotonic() - since
        return {"pieces": self._pieces, "busy_seconds": busy, **self._facts()}

    def _say(self, said: str, **fields: Any) -> None:
        self._wire.send({"said": said, **fields})

    def _guarded(self, act: Any, *arguments: Any) -> None:
        """What goes wrong in here is the owner's to know; the stage itself stays."""
        try:
            act(*arguments)
        except Exception as error:
            text, rows = f"{type(error).__name__}: {error}", self._running
            self._busy_since, self._running = None, []
            self._say("failed", epoch=self._epoch, rows=rows, text=text, traceback=traceback.format_exc())


def main(end: socket.socket, identity: Identity, renewed: str, host: str, proxy: int, key: str) -> None:
    """Entry point of the process. ``renewed`` is the file that has the identity of now, once it is another one."""
    StageProcess(Wire(end), CurrentIdentity(identity, Path(renewed)), host, proxy, key).run()
