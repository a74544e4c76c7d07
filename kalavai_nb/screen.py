"""Where pieces of output go: into the cell that runs, or into one display that keeps being updated."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol

from kalavai_nb.outputs import Bars, Clear, Piece, Text
from kalavai_nb.terminal import TERMINAL, in_kernel

UPDATE_SECONDS = 0.2
# a display is sent whole at each update, so it shows the end of a long output; %pool log has all of it
DOCUMENT_CHARACTERS = 20_000


class Screen(Protocol):
    """Shows pieces in order; ``close`` draws what was held back, and says how it went where there is a place."""

    def show(self, pieces: list[Piece]) -> None: ...

    def close(self, outcome: str) -> None: ...


class CellScreen:
    """The running cell: streams are appended to, pictures displayed, bars updated in place."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._displays: dict[str, LiveDisplay] = {}

    def show(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Text):
                stream = sys.stderr if piece.name == "stderr" else sys.stdout
                stream.write(piece.text)
                stream.flush()
                TERMINAL.forget()
            elif isinstance(piece, Bars):
                if self._bars and self._bars.key != piece.key:
                    self._draw_bars(last=True)
                self._bars = piece
            elif isinstance(piece, Clear):
                from IPython.display import clear_output

                clear_output(wait=piece.wait)
            else:
                if piece.caption:
                    sys.stdout.write(f"{piece.caption}\n")
                    sys.stdout.flush()
                publish(piece.data, piece.metadata, piece.key, piece.update)
        if self._bars and self._display_of(self._bars).is_due():
            self._draw_bars()

    def close(self, outcome: str) -> None:
        self._draw_bars(last=True)

    def _draw_bars(self, last: bool = False) -> None:
        if self._bars:
            is_seen = self._display_of(self._bars).draw({"text/plain": self._bars.text}, last=last)
            self._bars = None if is_seen else self._bars

    def _display_of(self, bars: Bars) -> LiveDisplay:
        return self._displays.setdefault(bars.key, LiveDisplay(bars.key))


class Document:
    """What was shown so far, as text and as HTML that any viewer of a saved notebook can show."""

    def __init__(self) -> None:
        self._text = ""
        self._bars: dict[str, str] = {}
        self._pictures: dict[str, str] = {}

    def add(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Text):
                self._text = (self._text + piece.text)[-DOCUMENT_CHARACTERS:]
            elif isinstance(piece, Bars):
                self._bars[piece.key] = piece.text
            elif isinstance(piece, Clear):
                self._text, self._pictures = "", {}
            elif picture := _as_html(piece.data):
                self._pictures[piece.key] = f"<div>{html.escape(piece.caption)}</div>{picture}"
            else:
                self._text += f"{piece.caption} {piece.data.get('text/plain', '')}".strip() + "\n"

    def plain(self) -> str:
        return "\n".join(filter(None, [self._text.rstrip("\n"), *self._bars.values()]))

    def html(self) -> str:
        return f"<pre>{html.escape(self.plain())}</pre>{''.join(self._pictures.values())}"


class DocumentScreen:
    """One display that shows a whole document and is updated in place, from whichever thread.

    For cells that run on after they were left (``--async``): a display keeps its place, a stream does not.
    """

    def __init__(self, key: str, title: str) -> None:
        self._title = title
        self._document = Document()
        self._display = LiveDisplay(key)
        # drawn in the cell that makes it, so that this is where it stays
        self._draw()

    def show(self, pieces: list[Piece]) -> None:
        self._document.add(pieces)
        if pieces and self._display.is_due():
            self._draw()

    def close(self, outcome: str) -> None:
        self._title = outcome
        self._draw(last=True)

    def _draw(self, last: bool = False) -> None:
        plain = f"{self._title}\n{self._document.plain()}".strip()
        self._display.draw(
            {"text/plain": plain, "text/html": f"{html.escape(self._title)}{self._document.html()}"}, last=last
        )


class Tabs:
    """A fold per rank in one display, of which one is open at a time."""

    def __init__(self, key: str, ranks: Iterable[int]) -> None:
        self._key = key
        self._display = LiveDisplay(key)
        self.documents = {rank: Document() for rank in ranks}
        self.open = set(self.documents)

    def draw_if_due(self) -> None:
        if self._display.is_due():
            self.draw()

    def draw(self) -> None:
        folds = [
            f"<details name='{self._key}'{' open' * (n == 0)}><summary>rank {rank}</summary>{document.html()}</details>"
            for n, (rank, document) in enumerate(self.documents.items())
        ]
        plain = "\n".join(f"── rank {rank} ──\n{document.plain()}" for rank, document in self.documents.items())
        self._display.draw({"text/plain": plain, "text/html": "".join(folds)}, last=not self.open)


class Fold:
    """One rank's place in `Tabs`."""

    def __init__(self, tabs: Tabs, rank: int) -> None:
        self._tabs, self._rank = tabs, rank
        self._document = tabs.documents[rank]

    def show(self, pieces: list[Piece]) -> None:
        self._document.add(pieces)
        if pieces:
            self._tabs.draw_if_due()

    def close(self, outcome: str) -> None:
        self._tabs.open.discard(self._rank)
        self._tabs.draw()


class LiveDisplay:
    """A display with a name, drawn first and then updated, not more often than people can read."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._drawn_at: float | None = None

    def is_due(self) -> bool:
        return self._drawn_at is None or time.monotonic() - self._drawn_at >= UPDATE_SECONDS

    def draw(self, data: dict[str, Any], *, last: bool = False) -> bool:
        """Whether it is to be seen now."""
        is_seen = publish(data, {}, self._key, self._drawn_at is not None, last)
        self._drawn_at = time.monotonic()
        return is_seen


def publish(
    data: dict[str, Any], metadata: dict[str, Any], key: str = "", update: bool = False, last: bool = False
) -> bool:
    """Show a MIME bundle; under a ``key`` it can be updated later. Whether it was shown, as an update may not be.

    Outside a kernel, print its plain text (see `kalavai_nb.terminal`); there, the ``last`` update is what stays.
    """
    if not in_kernel():
        return TERMINAL.draw(key, data.get("text/plain", ""), update=update, last=last)
    from IPython.display import display, update_display

    if update:
        update_display(data, display_id=key, metadata=metadata, raw=True)
    else:
        display(data, display_id=key or None, metadata=metadata, raw=True)
    return True


def _as_html(data: dict[str, Any]) -> str:
    """A bundle as HTML to put into a document; empty where it is text alone."""
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f"<img src='data:{kind};base64,{data[kind].strip()}'>"
    return str(data.get("image/svg+xml") or data.get("text/html") or "")
