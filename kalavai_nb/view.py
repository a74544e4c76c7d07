"""How the output of a cell's ranks is shown: which rank's words go through which transcript to which screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kalavai_nb.outputs import Transcript
from kalavai_nb.screen import CellScreen, DocumentScreen, Fold, Screen, Tabs


class View:
    """Routes items of ranks to screens. A rank without a route is not shown."""

    def __init__(self, routes: dict[int, tuple[Transcript, Screen]]) -> None:
        self._routes = routes
        # each pair once, since several ranks share one
        self._pairs = list({id(pair): pair for pair in routes.values()}.values())

    def say(self, rank: int, items: Iterable[list[Any]], now: float) -> None:
        if rank in self._routes:
            for item in items:
                self._routes[rank][0].say(rank, item, now)

    def end(self, rank: int, now: float) -> None:
        if rank in self._routes:
            self._routes[rank][0].end(rank, now)

    def refresh(self, now: float) -> None:
        """Show what is due."""
        for transcript, screen in self._pairs:
            screen.show(transcript.due(now))

    def pause(self, now: float) -> float | None:
        """Seconds until something that is held back is due."""
        pauses = [pause for transcript, _ in self._pairs if (pause := transcript.pause(now)) is not None]
        return min(pauses, default=None)

    def close(self, now: float, outcome: str) -> None:
        """Show all that is left, and how it went where there is a place for it."""
        self.refresh(now)
        for _, screen in self._pairs:
            screen.close(outcome)


def make_view(
    show: str, ranks: list[int], run: str, screen: DocumentScreen | None = None, *, patient: bool = False
) -> View:
    """The view that ``show=`` names, in the running cell or on the ``screen`` of a cell that was left.

    ``patient`` lets the first line wait longer for the other ranks to say the same.
    """
    if show == "none":
        return View({})
    if show == "tabs":
        tabs = Tabs(f"{run}-tabs", ranks)
        return View({rank: (Transcript([rank], f"{run}-{rank}"), Fold(tabs, rank)) for rank in ranks})
    shown = ranks[:1] if show == "rank0" else ranks
    pair: tuple[Transcript, Screen] = (Transcript(shown, run, lockstep=patient), screen or CellScreen())
    return View(dict.fromkeys(shown, pair))
