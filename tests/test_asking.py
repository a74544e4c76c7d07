"""A request that nobody waits for any more leaves no lease behind, whenever its grant comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from kalavai_nb import asking
from kalavai_nb.asking import Asking, ToldAlready
from kalavai_nb.state import Need

THEN = [("w", {"op": "kn_run", "generation": "g"})]


class Head:
    """Answers when it is told to; ``said`` is what it was asked."""

    is_away = False

    def __init__(self, interrupts: str = "") -> None:
        self.sinks: list[Callable[[dict[str, Any]], None]] = []
        self.said: list[Any] = []
        self._interrupts = interrupts

    def check(self) -> None:
        if self._interrupts == "wait":
            raise KeyboardInterrupt

    def request(self, need: Need, on_event: Any, then: Iterable[Any] = (), name: str = "") -> str:
        self.sinks.append(on_event)
        if self._interrupts == "request":
            raise KeyboardInterrupt
        return name

    def unlisten(self, key: str, sink: Any) -> None:
        self.sinks = [other for other in self.sinks if other != sink]

    def cancel(self, request: str) -> None:
        self.said.append("cancel")

    def rest(self, leases: Iterable[str]) -> None:
        self.said += [("rest", id) for id in leases]

    def release(self, leases: Iterable[str]) -> None:
        self.said += [("release", id) for id in leases]

    def tell(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self.said += [("tell", worker, message["op"], message["generations"]) for worker, message in messages]

    def answer(self, kind: str, *leases: str, told: bool = False) -> None:
        for sink in self.sinks:
            sink({"kind": kind, "told": told, "leases": [{"id": id, "devices": []} for id in leases]})
        if kind == "cancelled":
            self.sinks.clear()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WITHDRAW_SECONDS", 0.01)
    monkeypatch.setattr(asking, "LOOK_SECONDS", 0.01)


@pytest.mark.parametrize("moment", ["request", "wait"])
def test_a_grant_that_comes_after_all_patience_is_given_back(moment: str) -> None:
    head = Head(moment)
    with pytest.raises(KeyboardInterrupt):
        Asking(head, Need("me", 2, wakes=("mine",)), ()).wait(None, print)
    assert head.said == ["cancel"]
    head.answer("grant", "mine", "new")
    assert head.said[1:] == [("rest", "mine"), ("release", "new")]
    head.answer("cancelled")
    assert len(head.said) == 3
    assert not head.sinks


def test_an_interrupt_while_it_withdraws_ends_it_at_once_and_keeps_nothing() -> None:
    head = Head("wait")
    cancel = head.cancel

    def interrupted(request: str) -> None:
        head.cancel = cancel  # type: ignore[method-assign]
        raise KeyboardInterrupt

    head.cancel = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Asking(head, Need("me", 1), ()).wait(None, print)
    assert head.said == ["cancel"], "it was said after all"
    head.answer("grant", "new")
    assert head.said[1:] == [("release", "new")]


def test_a_cell_that_begins_after_all_patience_is_stopped() -> None:
    head = Head("wait")
    with pytest.raises(KeyboardInterrupt):
        Asking(head, Need("me", 1, wakes=("mine",)), THEN).wait(None, print)
    head.answer("grant", "mine", told=True)
    assert head.said == ["cancel", ("tell", "w", "kn_interrupt", ["g"]), ("rest", "mine")]


@pytest.mark.parametrize("told", [True, False])
def test_a_grant_that_crosses_the_interrupt_is_told_of_or_given_back(told: bool) -> None:
    head = Head("wait")
    head.cancel = lambda _: [head.answer("grant", "mine", told=told), head.answer("cancelled")]  # type: ignore
    with pytest.raises(ToldAlready if told else KeyboardInterrupt):
        Asking(head, Need("me", 1, wakes=("mine",)), THEN).wait(None, print)
    assert head.said == ([] if told else [("rest", "mine")])
