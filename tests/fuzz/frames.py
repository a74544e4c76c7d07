"""Frames: what comes over a connection to a stage, of strangers and of those that have its key."""

from __future__ import annotations

import contextlib
import queue
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import torch

from kalavai_nb.frames import PREFIX, hello, receive
from kalavai_nb.worker.stage.door import Door
from kalavai_nb.worker.stage.process import StageProcess
from kalavai_nb.worker.stage.tensors import tensor_of

from .mutation import MOST_BYTES, Mutator

KEY = "0123456789abcdef0123456789abcdef"
WISH = {"eos": [2], "max_new_tokens": 8, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 1, "logprobs": None}
HIDDEN: dict[str, Any] = {"kind": "piece", "epoch": 1, "rows": [0, 1], "samples": True, "dtype": "float32"}
HEADS: list[tuple[dict[str, Any], bytes]] = [
    ({**HIDDEN, "shape": [2, 3, 4], "pads": [0, 1], "fresh": [[0, 0, WISH], [1, 2, WISH]]}, bytes(96)),
    ({**HIDDEN, "shape": [2, 1, 4], "samples": False}, bytes(32)),
    ({"kind": "drop", "epoch": 1, "rows": [0, 1]}, b""),
    ({"kind": "submit", "epoch": 1, "sequences": [[0, [5, 6, 7], 0, WISH], [1, [9] * 20, 3, WISH]]}, b""),
    ({"kind": "cancel", "epoch": 1, "rows": [1, 7]}, b""),
    ({"kind": "tokens", "epoch": 1, "rows": [0, 1], "tokens": [4, 2], "done": [False, True]}, b""),
    ({"kind": "passed", "epoch": 1}, b""),
    ({"kind": "ping", "epoch": 1}, b""),
    ({"kind": "content", "epoch": 1}, b"weights"),
]


def framed(head: Any, body: bytes = b"") -> bytes:
    """As it goes over the connection."""
    packed: bytes = msgpack.packb(head)
    return PREFIX.pack(len(packed), len(body)) + packed + body


def head_of(mutator: Mutator, head: Any) -> Any:
    """Another head that msgpack can write."""
    made = mutator.value(head)
    with contextlib.suppress(ValueError, OverflowError, UnicodeEncodeError, TypeError):
        msgpack.packb(made)
        return made
    return head


class Frames:
    """Bytes of a connection, read until its end."""

    name = "frames"

    def __init__(self) -> None:
        self.valid = [framed(head, body) for head, body in HEADS]
        self.valid += [self.valid[0] + self.valid[3] + self.valid[5]]

    def make(self, mutator: Mutator) -> bytes:
        made = mutator.bytes(self.valid)
        if mutator.happens(0.02):
            # lengths that nobody keeps
            return PREFIX.pack(mutator.choose((0, 1, 1 << 12, 1 << 26, (1 << 32) - 1)), 1 << mutator.choose(range(64)))
        return made

    def take(self, given: bytes) -> str:
        theirs, ours = socket.socketpair()
        with ours, theirs:
            theirs.sendall(given)
            theirs.shutdown(socket.SHUT_WR)
            heads = 0
            try:
                while True:
                    head, body = receive(ours)
                    heads += 1
                    assert isinstance(head, dict)
                    if "dtype" in head:
                        with contextlib.suppress(ValueError, KeyError, TypeError):
                            tensor_of(head, body)
            except ConnectionError:
                return f"{min(heads, 3)} frames"


class Plain:
    """An identity without TLS: who gets through that is another test's."""

    def context(self, *, server: bool) -> Plain:
        return self

    def wrap_socket(self, connection: socket.socket, server_side: bool) -> socket.socket:
        return connection


class Doors:
    """A caller at the door of a stage: what it says of itself, then what it sends."""

    name = "door"

    def __init__(self) -> None:
        self.frames = 0
        identity: Any = Plain()
        self.door = Door("127.0.0.1", identity, KEY, self._on_frame, lambda news: news.close(), lambda epoch: None)
        hellos = [framed(hello(role, KEY, 1)) for role in ("ring", "orders", "news", "ping")]
        self.valid = [each + framed(*HEADS[number]) for number, each in enumerate(hellos)] + [
            framed(hello("ring", "not the key"))
        ]

    def _on_frame(self, head: dict[str, Any], body: bytearray) -> None:
        assert isinstance(head, dict)
        self.frames += 1

    def make(self, mutator: Mutator) -> bytes:
        if mutator.happens(0.5):
            said = head_of(mutator, hello(mutator.choose(("ring", "orders", "news", "ping")), KEY, 1))
            # more would wait in the sender's buffer
            return (framed(said) + self.valid[0])[:MOST_BYTES]
        return mutator.bytes(self.valid)

    def take(self, given: bytes) -> str:
        theirs, ours = socket.socketpair()
        with theirs:
            theirs.sendall(given)
            theirs.shutdown(socket.SHUT_WR)
            self.frames = 0
            self.door._answer(ours)
            assert ours.fileno() == -1, "the connection is left open"
        return f"{min(self.frames, 2)} frames"


class Wire:
    """The owner's worker, which only listens."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    def receive(self) -> Any:
        return self.orders.get()


class Layers:
    """What stands for a model: it takes shapes as one would, and computes nothing."""

    memory: dict[str, int] = {"kv_bytes": 0}  # noqa: RUF012

    def __init__(self, first: bool, last: bool) -> None:
        self.first, self.last = first, last

    def run(self, rows: Any, x: torch.Tensor, pads: Any = None) -> torch.Tensor:
        if x.shape[0] != len(rows) or x.ndim != (2 if self.first else 3):
            raise ValueError("other shapes")
        return torch.zeros((len(rows), 16)) if self.last else torch.zeros((*x.shape[:2], 4))

    def drop(self, rows: Any) -> None:
        for row in rows:
            hash(row)

    def reset(self) -> None:
        pass


class Stage:
    """The process of a stage, given frames by who has its key: it answers each, and goes on."""

    name = "stage"

    def __init__(self) -> None:
        self.wire = Wire()
        identity: Any = Plain()
        wire: Any = self.wire
        self.stages = []
        for first, last in ((True, True), (True, False), (False, True)):
            stage = StageProcess(wire, identity, "127.0.0.1", 0, KEY)
            model: Any = Layers(first, last)
            stage._model = model
            if not last:
                stage._pass_on = lambda head, body=b"": msgpack.packb(head)  # type: ignore[method-assign]
            self.stages.append(stage)
        self.wire.said.clear()

    def make(self, mutator: Mutator) -> Any:
        frames = [mutator.choose(HEADS) for _ in range(1 + int(mutator.random.random() * 4))]
        made = [(head_of(mutator, head) if mutator.happens(0.5) else head, body) for head, body in frames]
        return mutator.choose((0, 1, 2)), [(head, body) for head, body in made if isinstance(head, dict)]

    def take(self, given: Any) -> str:
        which, frames = given
        stage = self.stages[which]
        stage._guarded(stage._on_link, 1, None, 2, 4, 8)
        for head, body in frames:
            # as it comes out of the connection
            head = msgpack.unpackb(msgpack.packb(head), strict_map_key=False)
            stage._on_frame(head, bytearray(body))
        while not stage._inbox.empty():
            _, head, content = stage._inbox.get()
            stage._guarded(stage._frame, head, content)
            self._rest(stage)
        self._rest(stage)
        words = [message["said"] for message in self.wire.said]
        for message in self.wire.said:
            msgpack.packb(message)
        self.wire.said.clear()
        return "failed" if "failed" in words else "served"

    def _rest(self, stage: StageProcess) -> None:
        """Until there is nothing it could run, as the process does it; some ask for tokens without end."""
        before = stage._pieces
        for _ in range(200):
            stage._guarded(stage._run_next)
            if stage._is_idle:
                return
        assert stage._pieces > before + 100, "the stage is busy with nothing"


@contextlib.contextmanager
def frames() -> Iterator[Frames]:
    yield Frames()


@contextlib.contextmanager
def door() -> Iterator[Doors]:
    surface = Doors()
    with pytest.MonkeyPatch.context() as patch:
        # options of TCP, which these pairs do not have
        patch.setattr("kalavai_nb.worker.stage.door.quick", lambda connection: connection)
        yield surface
    surface.door._socket.close()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    yield Stage()
