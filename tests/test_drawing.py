"""Displays on a plain terminal: drawn over where that can be, and where it cannot, what became of them is printed."""

from __future__ import annotations

import io

import pyte
import pytest

from kalavai_nb.outputs import Bars, Piece, Text
from kalavai_nb.screen import CellScreen
from kalavai_nb.terminal import TERMINAL, Terminal

COLUMNS, ROWS = 20, 30


class Printed(io.StringIO):
    """What is printed, to a terminal or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]

    def lines(self) -> list[str]:
        """As they are to be seen."""
        screen = pyte.Screen(COLUMNS, ROWS)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in "\n".join(screen.display).rstrip().splitlines()]


def printed(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> Printed:
    stdout = Printed(is_terminal)
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", str(ROWS))
    return stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "one\n",
        "one\n\ntwo",
        "a line that is longer than the terminal is wide",
        "\x1b[31m####\x1b[0m" * 4,
        "\u5bbd" * 15,
        "e\u0301" * 18,
    ],
    ids=["nothing", "line", "ended", "gap", "long", "coloured", "wide", "combined"],
)
def test_what_was_there_before_stays_when_a_display_is_drawn_over(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, terminal = printed(monkeypatch, is_terminal=True), Terminal()
    stdout.write("before\n")
    with terminal.waiting():
        for update in (False, True, True):
            terminal.draw("key", text, update=update, last=False)
        terminal.draw("key", "after", update=True, last=True)
    assert stdout.lines() == ["before", "after"]


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("rest", [[], [Text("stdout", "done\n")], [Bars("b", "new")]], ids=["end", "text", "new bars"])
def test_bars_are_there_as_they_were_at_last(
    is_terminal: bool, rest: list[Piece], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kalavai_nb.screen.UPDATE_SECONDS", 0)
    stdout, screen = printed(monkeypatch, is_terminal=is_terminal), CellScreen()
    with TERMINAL.waiting():
        for text in ("0%", "50%", "100%"):
            screen.show([Bars("a", text)])
        screen.show(rest)
        screen.close("")
    assert stdout.lines().count("100%") == 1
    assert "50%" not in stdout.lines()
