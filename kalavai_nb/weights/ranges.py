"""Stretches of files, and the arithmetic of which of them are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

Spans = list[tuple[int, int]]


class Range(NamedTuple):
    """``length`` bytes from ``offset`` of a file of a model. A tuple, so that it travels as one."""

    file: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pieces(self, piece_bytes: int) -> Iterator[Range]:
        """The same in pieces of at most so many bytes."""
        for offset in range(self.offset, self.end, piece_bytes):
            yield Range(self.file, offset, min(piece_bytes, self.end - offset))


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as there can be: overlaps once, neighbours joined; by file and offset."""
    joined: list[Range] = []
    for file, offset, length in sorted(ranges):
        last = joined[-1] if joined else None
        if last and last.file == file and last.end >= offset:
            joined[-1] = Range(file, last.offset, max(last.end, offset + length) - last.offset)
        elif length:
            joined.append(Range(file, offset, length))
    return joined


def without(wanted: Range, present: Spans) -> Iterator[Range]:
    """The parts of a range that no span of its file (start, end; in order, apart) covers."""
    offset = wanted.offset
    for start, end in present:
        if end <= offset or start >= wanted.end:
            continue
        if start > offset:
            yield Range(wanted.file, offset, start - offset)
        offset = end
    if offset < wanted.end:
        yield Range(wanted.file, offset, wanted.end - offset)


def total_bytes(ranges: Iterable[Range]) -> int:
    """What they come to."""
    return sum(wanted.length for wanted in ranges)
