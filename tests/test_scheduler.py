"""The first stage's choice of what runs next, against a simulated pipeline: any order of prompts, cancels and ends."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from kalavai_nb.worker.stage.scheduler import Piece, Scheduler, Sequence

WISH = {"max_new_tokens": 0}


class Pipeline:
    """Stages as a queue: what goes in first comes back first. Each sequence generates the row's number of tokens."""

    def __init__(self, stages: int, max_rows: int, piece_tokens: int) -> None:
        self.scheduler = Scheduler(stages, max_rows, piece_tokens)
        self.stages, self.max_rows = stages, max_rows
        self.flying: deque[Piece] = deque()
        self.lengths: dict[int, int] = {}
        self.seen: dict[int, list[int]] = {}
        self.made: dict[int, int] = {}
        self.ended: list[int] = []

    def add(self, row: int, ids: tuple[int, ...], length: int) -> None:
        self.lengths[row] = length
        self.scheduler.add(Sequence(row, ids, 0, WISH))

    def send(self) -> bool:
        piece = self.scheduler.next()
        self.note_ended()
        if piece is None:
            return False
        self.check(piece)
        self.flying.append(piece)
        return True

    def check(self, piece: Piece) -> None:
        assert not any(row in self.ended for row in piece.rows)
        for row, tokens, pad in zip(piece.rows, piece.tokens, piece.pads, strict=True):
            assert len({len(t) for t in piece.tokens}) == 1
            assert row not in {r for other in self.flying for r in other.rows if other.samples}
            self.seen.setdefault(row, []).extend(tokens[pad:])
        assert len(set(self.seen) - set(self.ended)) <= self.max_rows

    def come_back(self) -> None:
        piece = self.flying.popleft()
        if not piece.samples:
            self.scheduler.piece_arrived()
            return
        done = []
        for row in piece.rows:
            self.made[row] = self.made.get(row, 0) + 1
            done.append(self.made[row] >= self.lengths[row])
        self.scheduler.tokens_arrived(piece.rows, [1000 + self.made[row] for row in piece.rows], done)
        self.note_ended()

    def note_ended(self) -> None:
        self.ended += self.scheduler.ended()

    def run_out(self) -> None:
        while self.send() or self.flying:
            if self.flying:
                self.come_back()


prompts = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 6)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(prompts=prompts, stages=st.integers(1, 4), max_rows=st.integers(1, 6), piece=st.integers(1, 64), data=st.data())
def test_every_sequence_is_run_whole_in_order_and_ends_once(prompts, stages, max_rows, piece, data) -> None:  # type: ignore[no-untyped-def]
    pipeline = Pipeline(stages, max_rows, piece)
    waiting = [(row, tuple(range(1, length + 1)), count) for row, (length, count) in enumerate(prompts)]
    while waiting:
        act = data.draw(st.sampled_from(["add", "send", "back"]))
        if act == "add":
            pipeline.add(*waiting.pop(0))
        elif act == "send":
            pipeline.send()
        elif pipeline.flying:
            pipeline.come_back()
    pipeline.run_out()
    assert sorted(pipeline.ended) == list(range(len(prompts)))
    for row, (length, count) in enumerate(prompts):
        assert pipeline.seen[row] == [*range(1, length + 1), *range(1001, 1000 + count)]


@settings(max_examples=200, deadline=None)
@given(prompts=prompts, stages=st.integers(1, 4), cancelled=st.sets(st.integers(0, 11)), data=st.data())
def test_what_is_cancelled_ends_and_the_others_are_not_touched(prompts, stages, cancelled, data) -> None:  # type: ignore[no-untyped-def]
    pipeline = Pipeline(stages, 4, 16)
    for row, (length, count) in enumerate(prompts):
        pipeline.add(row, tuple(range(1, length + 1)), count)
    for row in sorted(cancelled):
        for _ in range(data.draw(st.integers(0, 5))):
            pipeline.send()
            if pipeline.flying and data.draw(st.booleans()):
                pipeline.come_back()
        pipeline.scheduler.cancel([row])
        pipeline.note_ended()
    pipeline.run_out()
    begun = set(pipeline.seen)
    assert len(pipeline.ended) == len(set(pipeline.ended))
    assert set(pipeline.ended) == begun
    for row, (length, count) in enumerate(prompts):
        if row not in cancelled:
            assert pipeline.seen[row] == [*range(1, length + 1), *range(1001, 1000 + count)]


def test_groups_are_as_many_as_stages_and_of_one_size() -> None:
    pipeline = Pipeline(3, 9, 512)
    for row in range(9):
        pipeline.add(row, (1, 2, 3), 20)
    pipeline.send()
    pipeline.come_back()
    assert [pipeline.send() for _ in range(4)] == [True, True, True, False]
    assert sorted(len(piece.rows) for piece in pipeline.flying) == [3, 3, 3]


def test_steps_and_pieces_of_a_long_prompt_take_turns() -> None:
    pipeline = Pipeline(1, 4, 10)
    pipeline.add(0, (1, 2, 3), 50)
    pipeline.send()
    pipeline.come_back()
    pipeline.add(1, tuple(range(100)), 1)
    widths = []
    while len(widths) < 8:
        assert pipeline.send()
        widths.append(len(pipeline.flying[-1].tokens[0]))
        pipeline.come_back()
    assert widths == [1, 10] * 4


def test_a_prompt_that_nobody_wants_any_more_is_not_prefilled_to_its_end() -> None:
    pipeline = Pipeline(1, 4, 10)
    pipeline.add(0, tuple(range(1, 1001)), 5)
    pipeline.send()
    pipeline.scheduler.cancel([0])
    pipeline.note_ended()
    assert pipeline.ended == [0]
    assert not pipeline.send()
    pipeline.come_back()
    pipeline.add(1, (1, 2), 1)
    pipeline.run_out()
    assert pipeline.ended == [0, 1]
