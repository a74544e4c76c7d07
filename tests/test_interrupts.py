"""■ at any moment of a cell: it is followed to the ends of its ranks, and never left running."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from kalavai_nb.cell import CellRun
from kalavai_nb.gang import Rank
from kalavai_nb.options import RunOptions
from kalavai_nb.state import Device
from kalavai_nb.view import make_view

DEVICE = Device("d", 0, "cpu", "CPU", "box", "machine", 1 << 30, worker="w")


class Ranks:
    """One rank far away. It ends when it has been begun, and then stopped so often; ``interrupts`` come meanwhile."""

    def __init__(self, stops: int, interrupts: dict[str, int]) -> None:
        self.stops, self.interrupts = stops, interrupts
        self.begun = self.stopped = 0
        self._sink: Callable[[dict[str, Any]], None] = print

    def listen(self, key: str, sink: Callable[[dict[str, Any]], None]) -> None:
        self._sink = sink

    def unlisten(self, key: str, sink: Callable[[dict[str, Any]], None]) -> None:
        self._meanwhile("unlisten")

    def check(self) -> None:
        self._meanwhile("look")

    def begin(self) -> None:
        self.begun += 1
        self._meanwhile("begin")

    def tell(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for _, message in messages:
            assert message["op"] == "kn_interrupt"
            self.stopped += 1
            if self.begun and self.stopped == self.stops:
                end = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
                self._sink({"rank": 0, "sequence": 0, "items": [], "end": end})
        self._meanwhile("stop")

    def _meanwhile(self, moment: str) -> None:
        if self.interrupts.get(moment, 0):
            self.interrupts[moment] -= 1
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("complete", "stops", "interrupts"),
    [
        (CellRun.complete, 1, {"begin": 1}),
        (CellRun.complete, 2, {"begin": 2}),
        (CellRun.complete, 2, {"look": 2}),
        (CellRun.complete, 2, {"begin": 1, "stop": 1}),
        (CellRun.complete, 2, {"look": 1, "stop": 1, "unlisten": 1}),
        (CellRun.complete_in_background, 1, {"begin": 1}),
        (CellRun.complete_in_background, 2, {"begin": 2}),
    ],
)
def test_it_is_followed_to_its_end(complete: Any, stops: int, interrupts: dict[str, int]) -> None:
    ranks = Ranks(stops, dict(interrupts))
    rank = Rank(0, "lease", [DEVICE])
    run = CellRun(1, "run", ranks, [rank], RunOptions(), make_view("none", [0], "run"))  # type: ignore[arg-type]
    finished = []

    def finish(run: CellRun) -> None:
        finished.append(run.status)
        raise run.error() or AssertionError("it went well")

    complete(run, finish, ranks.begin)
    with pytest.raises(KeyboardInterrupt):
        run.result(10)
    assert finished == ["interrupted"]
    assert ranks.stopped >= stops
    assert not any(ranks.interrupts.values())


def test_one_that_was_interrupted_as_it_began_is_stopped_first() -> None:
    ranks = Ranks(1, {})
    run = CellRun(1, "run", ranks, [Rank(0, "lease", [DEVICE])], RunOptions(), make_view("none", [0], "run"))  # type: ignore[arg-type]
    run.complete(CellRun.error, ranks.begin, is_stopped=True)
    assert (ranks.begun, ranks.stopped, run.status) == (1, 1, "interrupted")
