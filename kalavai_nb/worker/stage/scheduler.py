"""What the first stage runs next: pieces of prompts, and steps of the sequences that are being generated. Pure.

Continuous batching: a sequence joins when there is room, and leaves when it has ended; nobody waits for anybody's end.

A pipeline of n stages is full when n batches are under way, so the rows that decode are kept in n groups of about the
same size, each of which is somewhere between the first stage and the last. Prompts come in pieces, so that they fill
the pipeline, too, and hold up the others for one piece only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# prompts are prefilled together where the longest is not longer than this many times the shortest
UNLIKE = 2
# … or where both are so short that it does not matter
SHORT_TOKENS = 64


@dataclass(frozen=True)
class Sequence:
    """A request as the first stage knows it: the tokens it has, how many of them were generated, and its wishes."""

    row: int
    ids: tuple[int, ...]
    made: int
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """What goes through all stages at once: for each row its next tokens, after ``pads`` columns of padding.

    ``tokens`` is [B][S]. Only where ``samples`` is set does a token come of it. ``fresh`` are the sequences that begin.
    """

    rows: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    pads: tuple[int, ...]
    samples: bool
    fresh: tuple[Sequence, ...] = ()


@dataclass
class _Prompts:
    """Prompts that are prefilled together, padded on the left to the longest."""

    sequences: list[Sequence]
    column: int = 0

    @property
    def width(self) -> int:
        return max(len(sequence.ids) for sequence in self.sequences)

    def piece(self, tokens: int) -> Piece:
        """The next columns, about so many tokens of them."""
        start, width = self.column, self.width
        self.column = end = min(width, start + max(1, tokens // len(self.sequences)))
        margins = [width - len(sequence.ids) for sequence in self.sequences]
        pads = tuple(min(max(margin - start, 0), end - start) for margin in margins)
        rows = tuple(
            (0,) * pad + sequence.ids[max(0, start - margin) : max(0, end - margin)]
            for sequence, margin, pad in zip(self.sequences, margins, pads, strict=True)
        )
        fresh = tuple(self.sequences) if start == 0 else ()
        return Piece(tuple(sequence.row for sequence in self.sequences), rows, pads, end == width, fresh)


@dataclass
class _Group:
    """Rows that decode together, each with the token that it goes on from."""

    tokens: dict[int, int] = field(default_factory=dict)
    # those that are between the first stage and the last now
    flying: tuple[int, ...] = ()

    @property
    def rows(self) -> set[int]:
        return {*self.tokens, *self.flying}


class Scheduler:
    """The sequences of one pipeline of so many ``stages``, at most ``max_rows`` of which are under way."""

    def __init__(self, stages: int, max_rows: int, piece_tokens: int) -> None:
        self._stages, self._max_rows, self._piece_tokens = stages, max_rows, piece_tokens
        self._waiting: deque[Sequence] = deque()
        self._prompts: _Prompts | None = None
        self._prefilling: set[int] = set()
        self._pieces_flying = 0
        self._groups = [_Group() for _ in range(stages)]
        self._cancelled: set[int] = set()
        self._ended: list[int] = []
        self._prompt_was_last = False

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def cancel(self, rows: Iterable[int]) -> None:
        """These are not wanted any more. What is between the stages ends when it comes back."""
        for row in rows:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.row != row)
            if row in self._prefilling or any(row in group.flying for group in self._groups):
                self._cancelled.add(row)
            elif any(group.tokens.pop(row, None) is not None for group in self._groups):
                self._ended.append(row)
        if self._prompts and all(sequence.row in self._cancelled for sequence in self._prompts.sequences):
            self._abandon_prompts(self._prompts)

    def ended(self) -> list[int]:
        """Rows whose memory may go, each said once."""
        ended, self._ended = self._ended, []
        return ended

    def next(self) -> Piece | None:
        """What to run now; None where nothing can be run before something comes back."""
        choices = [self._next_prompt_piece, self._next_step]
        # by turns, so that neither holds up the other
        for choose in reversed(choices) if self._prompt_was_last else choices:
            if piece := choose():
                self._prompt_was_last = choose == self._next_prompt_piece
                return piece
        return None

    def piece_arrived(self) -> None:
        """A piece of which no token comes has passed the last stage."""
        self._pieces_flying -= 1

    def tokens_arrived(self, rows: Iterable[int], tokens: Iterable[int], done: Iterable[bool]) -> None:
        """What the last stage has sampled for each row, and whether that was its end."""
        rows = tuple(rows)
        from_prompt = bool(rows) and rows[0] in self._prefilling
        if from_prompt:
            self._pieces_flying -= 1
            self._prefilling.difference_update(rows)
        else:
            for group in self._groups:
                if group.flying == rows:
                    group.flying = ()
        for row, token, is_done in zip(rows, tokens, done, strict=True):
            if is_done or row in self._cancelled:
                self._cancelled.discard(row)
                self._ended.append(row)
            else:
                self._seat(row, token)

    # inside

    def _seat(self, row: int, token: int) -> None:
        """Into the smallest group: it is the one that just came back, unless that has become larger than others."""
        min(self._groups, key=lambda group: len(group.rows)).tokens[row] = token

    def _next_step(self) -> Piece | None:
        for number, group in enumerate(self._groups):
            if group.tokens and not group.flying:
                rows = group.flying = tuple(group.tokens)
                tokens = tuple((token,) for token in group.tokens.values())
                group.tokens = {}
                # the next look begins behind this one
                self._groups = self._groups[number + 1 :] + self._groups[: number + 1]
                return Piece(rows, tokens, (0,) * len(rows), samples=True)
        return None

    def _next_prompt_piece(self) -> Piece | None:
        # enough to fill the pipeline and the connections, not so many that they pile up before a slow stage
        if self._pieces_flying >= 2 * self._stages + 2:
            return None
        if self._prompts is None:
            self._prompts = self._admit()
        if self._prompts is None:
            return None
        piece = self._prompts.piece(self._piece_tokens)
        self._pieces_flying += 1
        if piece.samples:
            self._prompts = None
        return piece

    def _abandon_prompts(self, prompts: _Prompts) -> None:
        """Nobody wants what is being prefilled: its pieces that are under way end with a word, and no more follow."""
        rows = {sequence.row for sequence in prompts.sequences}
        self._prompts = None
        self._prefilling -= rows
        self._cancelled -= rows
        self._ended += rows

    def _admit(self) -> _Prompts | None:
        """The prompts that have waited longest and are of like length, as many as there is room for."""
        room = self._max_rows - len(self._prefilling) - sum(len(group.rows) for group in self._groups)
        if room < 1 or not self._waiting:
            return None
        first = len(self._waiting[0].ids)
        alike = [
            s for s in self._waiting if max(first, len(s.ids)) <= max(SHORT_TOKENS, UNLIKE * min(first, len(s.ids)))
        ]
        chosen = alike[:room]
        taken = {sequence.row for sequence in chosen}
        self._waiting = deque(sequence for sequence in self._waiting if sequence.row not in taken)
        self._prefilling |= taken
        return _Prompts(chosen)
