"""Content on its way to a machine, piece by piece: two at a time, and the file is whole when the last one is there."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalavai_nb import freight
from kalavai_nb.blobs import BlobStore, load, pack
from kalavai_nb.errors import PoolClosed
from kalavai_nb.freight import Freight
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device

DEVICE = Device("d", 0, "cpu", "CPU", "box", "another machine", 1 << 30, worker="w")
PIECES = 9


class Worker:
    """The far end: a store, and how many pieces were on their way when each came."""

    owner = "me"

    def __init__(self, directory: Path, gone_after: int = 1000) -> None:
        self.store = BlobStore(directory)
        self._gone_after = gone_after
        self._turn = threading.Condition()
        self._under_way = self._came = 0
        self.seen: list[tuple[int, bool, int]] = []

    def call(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> list[Any]:
        [(_, message)] = messages
        fields = {name: value for name, value in message.items() if name != "op"}
        if message["op"] == "kn_missing":
            return [[digest for digest in fields["digests"] if not self.store.hold(digest, fields["owner"])]]
        with self._turn:
            self._under_way += 1
            self._came += 1
            self._turn.notify_all()
            if self._came in (2, 3):
                # the second is on its way until the third is too
                assert self._turn.wait_for(lambda: self._came >= 3, 20)
            elif self._came in (1, PIECES - 1):
                # time for one to come that should not
                self._turn.wait_for(lambda: self._under_way == 2, 0.05)
            self.seen.append((fields["offset"], fields["last"], self._under_way))
            if len(self.seen) > self._gone_after:
                return [{"gone": "the worker w has left the pool"}]
        self.store.write(**fields)
        with self._turn:
            self._under_way -= 1
        return [None]

    def tell(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        raise AssertionError(f"nothing is told: {messages}")

    def snapshot(self) -> Snapshot:
        raise AssertionError("nobody asks")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freight, "PIECE_BYTES", 1 << 10)


def test_two_pieces_are_on_their_way_but_the_first_and_the_last_alone(tmp_path: Path) -> None:
    worker, gone = Worker(tmp_path), []
    value = np.arange((PIECES - 1) << 7)
    packed = pack(value)
    Freight(worker).place([packed], [DEVICE], gone.append)
    assert (load(worker.store.path(packed.blob.digest), packed.blob.sizes) == value).all()
    assert len(worker.seen) == len(gone) == PIECES
    assert max(count for _, _, count in worker.seen) == 2
    assert worker.seen[0] == (0, False, 1)
    assert worker.seen[-1][1:] == (True, 1)


def test_a_worker_that_goes_meanwhile_ends_it(tmp_path: Path) -> None:
    worker = Worker(tmp_path, gone_after=3)
    with pytest.raises(PoolClosed, match="has left the pool"):
        Freight(worker).place([pack(np.arange(PIECES << 7))], [DEVICE])
