"""From the outputs of several ranks to one story: equal lines once, with the ranks that said them, in order.

Pure: times are arguments, and what is to be shown comes back as a list of pieces for a screen. Nothing that was shown
is ever sent again; only progress bars (lines that use a carriage return) live in one display that is updated.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

# how long a line waits for the other ranks to say the same
PATIENCE_SECONDS = 0.03
# and after they did so the last time: ranks in lockstep are seldom further apart
LOCKSTEP_SECONDS = 0.2
# a cell's last value comes at its end, and so do those of the other ranks
RESULT_SECONDS = 1.0
# outputs that come this close together are shown in the order of the ranks
TOGETHER_SECONDS = 0.05
# how long the start of a line waits for its end
PARTIAL_SECONDS = 0.25


@dataclass(frozen=True)
class Text:
    """Text to append to a stream."""

    name: str
    text: str


@dataclass(frozen=True)
class Bars:
    """The text of all progress bars that are going on; ``key`` names the display they live in."""

    key: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A rich output, with the caption that says whose it is. ``key`` names the display to update, if it has one."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    caption: str = ""
    key: str = ""
    update: bool = False


@dataclass(frozen=True)
class Clear:
    """Clear the cell's output, as IPython's ``clear_output``."""

    wait: bool


Piece = Text | Bars | Picture | Clear


@dataclass
class _Voice:
    """What one rank has said and nobody has seen yet."""

    queue: deque[tuple[float, tuple[str, ...], Any]] = field(default_factory=deque)
    partial: dict[str, str] = field(default_factory=dict)
    partial_since: float = 0.0
    ended: bool = False
    replaces: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)


class Transcript:
    """Merges what ranks say. ``say`` takes items in, ``due`` and ``finish`` give pieces to show."""

    def __init__(self, ranks: Iterable[int], run: str, *, lockstep: bool = False) -> None:
        self._voices = {rank: _Voice() for rank in ranks}
        self._run = run
        self._alone = len(self._voices) == 1
        self._lockstep = lockstep
        # the rank whose unfinished line stands at the end of the output
        self._open: tuple[int, str] | None = None
        self._bars: dict[int, str] = {}
        self._live: set[int] = set()
        self._bars_number = 0
        self._bars_changed = False
        self._numbers = 0
        self._keys: dict[tuple[int, str], str] = {}

    def say(self, rank: int, item: list[Any], now: float) -> None:
        """Take in one item of a rank (see worker/outbox.py for its form)."""
        voice = self._voices[rank]
        kind, *rest = item
        if kind != "stream" and not self._alone:
            # what was printed before it comes before it
            self._end_lines(voice, now)
        if kind != "stream" or self._alone:
            voice.queue.append((now, (kind, json.dumps(rest, sort_keys=True, default=str)), rest))
            return
        name, text = rest
        lines = (voice.partial.pop(name, "") + text).split("\n")
        for line in (line.rstrip("\r") for line in lines[:-1]):
            voice.queue.append((now, (kind, name, line), line))
        if lines[-1]:
            voice.partial[name] = lines[-1]
            voice.partial_since = now
            if _is_bar(lines[-1]):
                self._set_bar(rank, lines[-1], live=True)

    def end(self, rank: int, now: float) -> None:
        """This rank says no more in this cell."""
        voice = self._voices[rank]
        self._end_lines(voice, now)
        voice.ended = True

    def due(self, now: float) -> list[Piece]:
        """What is to be shown now, in order."""
        pieces: list[Piece] = []
        while group := self._next_group(now):
            pieces += self._told(group)
        if not self._alone:
            pieces += self._partials(now)
        if self._bars_changed:
            pieces.append(self._bars_piece())
        return _joined(pieces)

    def pause(self, now: float) -> float | None:
        """Seconds until something that is held back is due; None where nothing is."""
        heads = [voice.queue[0] for voice in self._voices.values() if voice.queue]
        moments = [since + self._patience(key[0]) for since, key, _ in heads]
        moments += [v.partial_since + PARTIAL_SECONDS for v in self._voices.values() if self._waiting(v)]
        return max(0.0, min(moments) - now) if moments else None

    # inside

    def _end_lines(self, voice: _Voice, now: float) -> None:
        for name, text in voice.partial.items():
            voice.queue.append((now, ("stream", name, text), text))
        voice.partial.clear()

    def _next_group(self, now: float) -> list[int]:
        """The ranks whose next output is the same and due; empty where the next one still waits for others."""
        speaking = [rank for rank, voice in self._voices.items() if voice.queue]
        if not speaking:
            return []
        since, key, _ = self._voices[self._first(speaking)].queue[0]
        same = [rank for rank in speaking if self._voices[rank].queue[0][1] == key]
        silent = [rank for rank, voice in self._voices.items() if not voice.queue and not voice.ended]
        if silent and now - since < self._patience(key[0]):
            return []
        self._lockstep = len(same) > 1 and not silent
        return same

    def _first(self, speaking: list[int]) -> int:
        """Whose output is next: the oldest, or that of a lower rank which came together with it.

        Last values come after all that led to them.
        """
        heads = {rank: self._voices[rank].queue[0] for rank in speaking}
        plain = {rank: head for rank, head in heads.items() if head[1][0] != "result"}
        if not plain:
            return min(heads)
        oldest = min(since for since, _, _ in plain.values())
        return min(rank for rank, (since, _, _) in plain.items() if since <= oldest + TOGETHER_SECONDS)

    def _patience(self, kind: str) -> float:
        if kind == "result":
            return RESULT_SECONDS
        return LOCKSTEP_SECONDS if self._lockstep else PATIENCE_SECONDS

    def _told(self, ranks: list[int]) -> list[Piece]:
        """The next output of these ranks, which is the same, as pieces."""
        contents = [self._voices[rank].queue.popleft() for rank in ranks]
        _, (kind, *key), content = contents[0]
        if kind == "stream":
            if self._alone:
                return [Text(content[0], content[1])]
            return self._line(ranks, key[0], content)
        if kind == "clear":
            return [piece for rank in ranks for piece in self._cleared(rank, content[0])]
        return [*self._close_line(), self._picture(ranks, kind, content)]

    def _line(self, ranks: list[int], name: str, line: str) -> list[Piece]:
        if _is_bar(line):
            for rank in ranks:
                self._set_bar(rank, line, live=False)
            return []
        if self._open == (ranks[0], name) and len(ranks) == 1:
            self._open = None
            return [Text(name, f"{line}\n")]
        return [*self._close_line(), Text(name, f"{self._who(ranks)}{line}\n")]

    def _partials(self, now: float) -> list[Piece]:
        """Starts of lines that have waited long enough, such as a prompt or ``print(…, end="")``."""
        pieces: list[Piece] = []
        for rank, voice in self._voices.items():
            if voice.queue or now - voice.partial_since < PARTIAL_SECONDS:
                continue
            for name, text in voice.partial.items():
                if _is_bar(text) or not text:
                    continue
                if self._open == (rank, name):
                    pieces.append(Text(name, text))
                else:
                    pieces += [*self._close_line(), Text(name, self._who([rank]) + text)]
                    self._open = (rank, name)
                voice.partial[name] = ""
            voice.partial = {name: text for name, text in voice.partial.items() if text}
        return pieces

    def _waiting(self, voice: _Voice) -> bool:
        """Whether the start of a line is held back; a bar is not, however long it stands still."""
        return not voice.queue and any(not _is_bar(text) for text in voice.partial.values())

    def _close_line(self) -> list[Piece]:
        if self._open is None:
            return []
        (_, name), self._open = self._open, None
        return [Text(name, "\n")]

    def _picture(self, ranks: list[int], kind: str, content: list[Any]) -> Picture:
        data, metadata, *rest = content
        display_id = rest[0] if rest else ""
        who = self._who(ranks)
        if kind == "result" and not self._alone and set(data) == {"text/plain"}:
            return Picture({"text/plain": who + data["text/plain"]}, metadata)
        first = self._voices[ranks[0]]
        update = kind == "update"
        if first.replaces and not update:
            # what came after clear_output takes the place of what was there
            key, update = first.replaces.pop(0), True
        elif display_id:
            key = self._keys.get((ranks[0], display_id), f"{self._run}-{ranks[0]}-{display_id}")
            self._keys.update({(rank, display_id): key for rank in ranks if not update})
        else:
            self._numbers += 1
            key = f"{self._run}-{self._numbers}"
        first.shown.append(key)
        return Picture(data, metadata, "" if self._alone or update else who.strip(), key, update)

    def _cleared(self, rank: int, wait: bool) -> list[Piece]:
        voice = self._voices[rank]
        if self._alone:
            return [Clear(wait)]
        # others' output must stay, so the next pictures of this rank replace its last ones in place
        voice.replaces, voice.shown = list(dict.fromkeys([*voice.shown, *voice.replaces])), []
        return []

    def _set_bar(self, rank: int, text: str, *, live: bool) -> None:
        if not self._live and rank not in self._live and live and self._bars.get(rank) is not None:
            # all earlier bars are done: new ones get a display of their own, where the output is now
            self._bars = {}
            self._bars_number += 1
        segments = [part for part in text.replace("\x1b[A", "").split("\r") if part.strip()]
        if segments:
            self._bars[rank] = segments[-1]
            self._bars_changed = True
        (self._live.add if live else self._live.discard)(rank)

    def _bars_piece(self) -> Bars:
        self._bars_changed = False
        by_text: dict[str, list[int]] = {}
        for rank in sorted(self._bars):
            by_text.setdefault(self._bars[rank], []).append(rank)
        text = "\n".join(f"{self._who(ranks)}{bar}" for bar, ranks in by_text.items())
        return Bars(f"{self._run}-bars-{self._bars_number}", text)

    def _who(self, ranks: list[int]) -> str:
        return "" if self._alone else f"[{rank_range(ranks)}] "


def _is_bar(line: str) -> bool:
    """Whether this line overwrites itself; a terminal's line end (``\\r\\n``) does not make it so."""
    return "\r" in line.rstrip("\r")


def rank_range(ranks: Iterable[int]) -> str:
    """``"0-2,5"`` for 0, 1, 2 and 5."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """The same with neighbouring texts of one stream made one."""
    joined: list[Piece] = []
    for name, run in groupby(pieces, key=lambda piece: piece.name if isinstance(piece, Text) else None):
        if name is None:
            joined += run
        else:
            joined.append(Text(name, "".join(piece.text for piece in run if isinstance(piece, Text))))
    return joined
