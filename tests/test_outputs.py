"""From what several ranks say to one story."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalavai_nb.outputs import (
    LOCKSTEP_SECONDS,
    PARTIAL_SECONDS,
    PATIENCE_SECONDS,
    RESULT_SECONDS,
    Bars,
    Clear,
    Picture,
    Piece,
    Text,
    Transcript,
    rank_range,
)

LATE = 100.0


class Cell:
    """A transcript, the time, and all that it has shown."""

    def __init__(self, ranks: int | Iterable[int], *, lockstep: bool = False) -> None:
        self.ranks = list(range(ranks)) if isinstance(ranks, int) else list(ranks)
        self.transcript = Transcript(self.ranks, "run", lockstep=lockstep)
        self.now = 0.0
        self.shown: list[Piece] = []

    def prints(self, rank: int, text: str, name: str = "stdout") -> None:
        self.transcript.say(rank, ["stream", name, text], self.now)

    def draws(self, rank: int, what: str, display_id: str = "", kind: str = "display") -> None:
        self.transcript.say(rank, [kind, {"image/png": what, "text/plain": "<Figure>"}, {}, display_id], self.now)

    def results(self, rank: int, text: str) -> None:
        self.transcript.say(rank, ["result", {"text/plain": text}, {}], self.now)

    def clears(self, rank: int, wait: bool = False) -> None:
        self.transcript.say(rank, ["clear", wait], self.now)

    def ends(self, *ranks: int) -> None:
        for rank in ranks or self.ranks:
            self.transcript.end(rank, self.now)

    def due(self, after: float = 0.0) -> list[Piece]:
        """What is shown when so many seconds have passed."""
        self.now += after
        pieces = self.transcript.due(self.now)
        self.shown += pieces
        return pieces

    def text(self, after: float = 0.0) -> str:
        return text_of(self.due(after))

    def pictures(self, after: float = 0.0) -> list[Picture]:
        return [piece for piece in self.due(after) if isinstance(piece, Picture)]


def text_of(pieces: list[Piece], name: str = "") -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text) and name in (piece.name, ""))


def both(cell: Cell) -> list[Picture]:
    """The pictures of two ranks that differ: the second waits in vain for the first to show the same."""
    return cell.pictures() + cell.pictures(PATIENCE_SECONDS)


def two_in_lockstep() -> Cell:
    """A cell whose two ranks have just said the same."""
    cell = Cell(2)
    cell.prints(0, "begin\n")
    cell.prints(1, "begin\n")
    assert cell.text() == "[0-1] begin\n"
    return cell


# lines of several ranks


def test_equal_lines_are_shown_once() -> None:
    cell = Cell(3)
    for rank in range(3):
        cell.prints(rank, "hello\n")
    assert cell.due() == [Text("stdout", "[0-2] hello\n")]


def test_different_lines_are_shown_in_the_order_of_the_ranks() -> None:
    cell = Cell(3)
    for rank in (2, 0, 1):
        cell.prints(rank, f"{rank}\n")
    cell.ends()
    assert cell.text() == "[0] 0\n[1] 1\n[2] 2\n"


def test_some_ranks_may_agree() -> None:
    cell = Cell(4)
    for rank, word in enumerate("abba"):
        cell.prints(rank, f"{word}\n")
    cell.ends()
    assert cell.text() == "[0,3] a\n[1-2] b\n"


def test_equal_lines_meet_again_after_one_rank_said_more() -> None:
    cell = Cell(2)
    cell.prints(0, "only me\nboth\n")
    cell.prints(1, "both\n")
    assert cell.text() == "[0] only me\n[0-1] both\n"


def test_a_line_waits_for_the_other_ranks_but_not_for_long() -> None:
    cell = Cell(2)
    cell.prints(0, "a\n")
    assert cell.due(PATIENCE_SECONDS * 0.9) == []
    assert cell.text(PATIENCE_SECONDS * 0.2) == "[0] a\n"


def test_a_line_that_comes_in_time_is_merged() -> None:
    cell = Cell(2)
    cell.prints(1, "a\n")
    assert cell.due(PATIENCE_SECONDS * 0.9) == []
    cell.prints(0, "a\n")
    assert cell.text() == "[0-1] a\n"


def test_nobody_waits_for_ranks_that_have_ended() -> None:
    cell = Cell(2)
    cell.ends(1)
    cell.prints(0, "a\n")
    assert cell.text() == "[0] a\n"


def test_ranks_in_lockstep_wait_longer_for_each_other() -> None:
    cell = two_in_lockstep()
    cell.prints(0, "next\n")
    assert cell.due(LOCKSTEP_SECONDS * 0.9) == []
    cell.prints(1, "next\n")
    assert cell.text() == "[0-1] next\n"


def test_ranks_that_miss_each_other_are_in_lockstep_no_more() -> None:
    cell = two_in_lockstep()
    cell.prints(0, "a\n")
    assert cell.text(LOCKSTEP_SECONDS * 1.1) == "[0] a\n"
    cell.prints(0, "b\n")
    assert cell.text(PATIENCE_SECONDS * 1.1) == "[0] b\n"


def test_lockstep_can_be_assumed_from_the_start() -> None:
    cell = Cell(2, lockstep=True)
    cell.prints(0, "a\n")
    assert cell.due(LOCKSTEP_SECONDS * 0.9) == []
    assert cell.text(LOCKSTEP_SECONDS * 0.2) == "[0] a\n"


def test_streams_are_kept_apart() -> None:
    cell = Cell(2)
    cell.prints(0, "a\n", "stderr")
    cell.prints(1, "a\n", "stdout")
    cell.ends()
    assert cell.due() == [Text("stderr", "[0] a\n"), Text("stdout", "[1] a\n")]


def test_neighbouring_lines_of_a_stream_are_one_piece() -> None:
    cell = Cell(2)
    for rank in range(2):
        cell.prints(rank, "a\nb\n")
        cell.prints(rank, "c\n", "stderr")
    assert cell.due() == [Text("stdout", "[0-1] a\n[0-1] b\n"), Text("stderr", "[0-1] c\n")]


def test_empty_lines_are_lines() -> None:
    cell = Cell(2)
    cell.prints(0, "\n\n")
    cell.prints(1, "\n\n")
    assert cell.text() == "[0-1] \n[0-1] \n"


def test_a_line_may_come_in_parts() -> None:
    cell = Cell(2)
    for part in ("he", "l", "lo\n"):
        cell.prints(0, part)
    cell.prints(1, "hello\n")
    assert cell.text() == "[0-1] hello\n"


def test_line_ends_of_a_terminal_are_line_ends() -> None:
    cell = Cell(2)
    cell.prints(0, "a\r\nb\r\n")
    cell.prints(1, "a\nb\n")
    assert cell.text() == "[0-1] a\n[0-1] b\n"


def test_a_line_end_of_a_terminal_may_come_in_two_parts() -> None:
    cell = Cell(2)
    for rank in range(2):
        cell.prints(rank, "a\r")
        cell.prints(rank, "\n")
    assert cell.due() == [Text("stdout", "[0-1] a\n")]


# starts of lines


def test_the_start_of_a_line_is_shown_after_a_while() -> None:
    cell = Cell(2)
    cell.prints(0, "loading…")
    assert cell.due(PARTIAL_SECONDS * 0.9) == []
    assert cell.text(PARTIAL_SECONDS * 0.2) == "[0] loading…"
    cell.prints(0, " done\n")
    assert cell.text(LATE) == " done\n"


def test_the_start_of_a_line_grows() -> None:
    cell = Cell(2)
    cell.prints(0, ".")
    assert cell.text(PARTIAL_SECONDS) == "[0] ."
    cell.prints(0, ".")
    assert cell.text(PARTIAL_SECONDS) == "."
    cell.prints(0, "\n")
    assert cell.text(LATE) == "\n"


def test_another_ranks_line_begins_on_a_line_of_its_own() -> None:
    cell = Cell(2)
    cell.prints(0, "a")
    assert cell.text(PARTIAL_SECONDS) == "[0] a"
    cell.prints(1, "b\n")
    assert cell.text(PATIENCE_SECONDS) == "\n[1] b\n"
    cell.prints(0, "c\n")
    assert cell.text(LATE) == "[0] c\n"


def test_a_picture_begins_on_a_line_of_its_own() -> None:
    cell = Cell(2)
    cell.prints(0, "a")
    assert cell.text(PARTIAL_SECONDS) == "[0] a"
    cell.draws(0, "x")
    pieces = cell.due(PATIENCE_SECONDS)
    assert pieces[0] == Text("stdout", "\n")
    assert isinstance(pieces[1], Picture)


def test_the_start_of_a_line_is_shown_once() -> None:
    cell = Cell(2)
    cell.prints(0, "a")
    cell.due(PARTIAL_SECONDS)
    assert cell.due(LATE) == []


@pytest.mark.parametrize("kind", ["display", "result"])
def test_what_a_rank_printed_before_a_picture_or_value_is_shown_before_it(kind: str) -> None:
    cell = Cell(2)
    cell.prints(0, "loss:")
    if kind == "result":
        cell.results(0, "5")
    else:
        cell.draws(0, "x")
    cell.ends()
    first, second = cell.due(LATE)
    assert isinstance(first, Text)
    assert first.text.startswith("[0] loss:")
    assert isinstance(second, Picture)


# the end


def test_the_end_of_a_rank_flushes_its_last_line() -> None:
    cell = Cell(2)
    cell.prints(0, "no newline")
    cell.ends()
    assert cell.text() == "[0] no newline\n"


def test_last_lines_are_merged_too() -> None:
    cell = Cell(2)
    cell.prints(0, "end")
    cell.ends(0)
    assert cell.due() == []
    cell.prints(1, "end")
    cell.ends(1)
    assert cell.text() == "[0-1] end\n"


def test_the_end_of_a_rank_that_said_nothing_shows_nothing() -> None:
    cell = Cell(2)
    cell.ends()
    assert cell.due() == []


# last values


def test_equal_values_are_shown_once() -> None:
    cell = Cell(2)
    cell.results(0, "42")
    cell.results(1, "42")
    assert [picture.data for picture in cell.pictures()] == [{"text/plain": "[0-1] 42"}]


def test_values_wait_for_those_of_the_others() -> None:
    cell = Cell(2)
    cell.results(0, "42")
    assert cell.due(RESULT_SECONDS * 0.9) == []
    cell.results(1, "43")
    cell.ends()
    assert [picture.data["text/plain"] for picture in cell.pictures()] == ["[0] 42", "[1] 43"]


def test_a_value_is_shown_in_the_end_though_another_rank_goes_on() -> None:
    cell = Cell(2)
    cell.results(0, "42")
    assert [picture.data["text/plain"] for picture in cell.pictures(RESULT_SECONDS)] == ["[0] 42"]


def test_values_come_after_what_led_to_them() -> None:
    cell = Cell(2)
    cell.results(0, "42")
    cell.now += 0.1
    cell.prints(1, "still at it\n")
    cell.results(1, "42")
    first, second = cell.due()
    assert first == Text("stdout", "[1] still at it\n")
    assert isinstance(second, Picture)
    assert second.data == {"text/plain": "[0-1] 42"}


def test_a_rich_value_is_shown_with_a_caption() -> None:
    cell = Cell(2)
    for rank in range(2):
        cell.transcript.say(rank, ["result", {"text/plain": "df", "text/html": "<table>"}, {}], 0.0)
    [picture] = cell.pictures()
    assert (picture.data["text/html"], picture.caption, picture.update) == ("<table>", "[0-1]", False)


# pictures


def test_equal_pictures_are_shown_once() -> None:
    cell = Cell(2)
    cell.draws(0, "x")
    cell.draws(1, "x")
    [picture] = cell.pictures()
    assert (picture.data["image/png"], picture.caption) == ("x", "[0-1]")


def test_different_pictures_say_whose_they_are() -> None:
    cell = Cell(2)
    cell.draws(0, "x")
    cell.draws(1, "y")
    cell.ends()
    assert [(p.data["image/png"], p.caption) for p in cell.pictures()] == [("x", "[0]"), ("y", "[1]")]


def test_pictures_have_keys_of_their_own() -> None:
    cell = Cell(2)
    for what in "xyz":
        cell.draws(0, what)
        cell.draws(1, what)
    keys = [picture.key for picture in cell.pictures()]
    assert len(set(keys)) == 3


def test_a_display_is_updated_under_its_key_and_without_a_caption() -> None:
    cell = Cell(2)
    cell.draws(0, "x", "id")
    [shown] = cell.pictures(PATIENCE_SECONDS)
    cell.draws(0, "y", "id", "update")
    [updated] = cell.pictures(PATIENCE_SECONDS)
    assert (shown.update, updated.update) == (False, True)
    assert shown.key == updated.key
    assert (updated.data["image/png"], updated.caption) == ("y", "")


def test_displays_of_two_ranks_with_the_same_id_are_two() -> None:
    cell = Cell(2)
    cell.draws(0, "x", "id")
    cell.draws(1, "y", "id")
    mine, theirs = both(cell)
    cell.draws(1, "z", "id", "update")
    [updated] = cell.pictures(LATE)
    assert mine.key != theirs.key == updated.key


def test_updates_of_a_display_that_ranks_share_are_not_lost() -> None:
    cell = Cell(2)
    cell.draws(0, "x", "id")
    cell.draws(1, "x", "id")
    [shared] = cell.pictures()
    cell.draws(1, "y", "id", "update")
    [changed] = cell.pictures(LATE)
    assert not changed.update or changed.key == shared.key


# clear_output


def test_a_rank_alone_clears_the_cell() -> None:
    cell = Cell(1)
    cell.draws(0, "x")
    cell.clears(0, wait=True)
    cell.draws(0, "y")
    first, clear, second = cell.due()
    assert clear == Clear(True)
    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert not second.update


def test_one_rank_of_several_replaces_its_own_pictures_only() -> None:
    cell = Cell(2)
    cell.draws(0, "x0")
    cell.draws(1, "x1")
    mine, theirs = both(cell)
    cell.clears(0)
    cell.draws(0, "y0")
    [new] = cell.pictures(PATIENCE_SECONDS)
    assert (new.key, new.update, new.caption) == (mine.key, True, "")
    cell.draws(1, "y1")
    [other] = cell.pictures(PATIENCE_SECONDS)
    assert other.key not in (mine.key, theirs.key)
    assert not other.update


def test_the_same_picture_is_replaced_again_and_again() -> None:
    cell = Cell(2)
    keys = set()
    for what in "abcde":
        for rank in range(2):
            cell.clears(rank, wait=True)
            cell.draws(rank, what)
        keys |= {picture.key for picture in cell.pictures(LATE)}
    assert len(keys) == 1


def test_ranks_that_clear_at_the_same_time_each_replace_their_own() -> None:
    cell = Cell(2)
    keys = set()
    for step in range(3):
        for rank in range(2):
            cell.clears(rank, wait=True)
            cell.draws(rank, f"{rank} at {step}")
        keys |= {picture.key for picture in cell.pictures(LATE)}
    assert len(keys) == 2


def test_clearing_twice_is_clearing_once() -> None:
    cell = Cell(2)
    cell.draws(0, "x")
    [old] = cell.pictures(PATIENCE_SECONDS)
    cell.clears(0)
    cell.clears(0)
    cell.draws(0, "y")
    [new] = cell.pictures(LATE)
    assert (new.key, new.update) == (old.key, True)


def test_clearing_leaves_the_lines_of_the_others() -> None:
    cell = Cell(2)
    cell.clears(0)
    cell.prints(1, "a\n")
    assert cell.due(LATE) == [Text("stdout", "[1] a\n")]


# progress bars


def bar(step: int, rank: int = 0) -> str:
    return f"\rr{rank}: {step}/3"


def test_bars_live_in_one_display() -> None:
    cell = Cell(2)
    keys = set()
    for step in range(4):
        for rank in range(2):
            cell.prints(rank, bar(step, rank), "stderr")
        [piece] = cell.due(LATE)
        assert isinstance(piece, Bars)
        assert piece.text == f"[0] r0: {step}/3\n[1] r1: {step}/3"
        keys.add(piece.key)
    assert len(keys) == 1


def test_equal_bars_are_shown_once() -> None:
    cell = Cell(3)
    for rank in range(3):
        cell.prints(rank, bar(1 if rank < 2 else 2), "stderr")
    [piece] = cell.due()
    assert isinstance(piece, Bars)
    assert piece.text == "[0-1] r0: 1/3\n[2] r0: 2/3"


def test_a_bar_that_is_done_keeps_its_last_state() -> None:
    cell = Cell(2)
    cell.prints(0, bar(2), "stderr")
    cell.due()
    cell.prints(0, bar(3) + "\n", "stderr")
    [piece] = cell.due(PATIENCE_SECONDS)
    assert isinstance(piece, Bars)
    assert piece.text == "[0] r0: 3/3"


def test_bars_that_stand_still_show_nothing() -> None:
    cell = Cell(2)
    cell.prints(0, bar(1), "stderr")
    cell.due()
    assert cell.due(LATE) == []


def test_bars_that_stand_still_are_not_due_at_once() -> None:
    cell = Cell(2)
    cell.prints(0, bar(1), "stderr")
    cell.due(LATE)
    assert cell.transcript.pause(cell.now) is None


def test_a_bar_after_one_that_is_done_gets_a_display_of_its_own() -> None:
    cell = Cell(2)
    for rank in range(2):
        cell.prints(rank, f"{bar(2)}{bar(3)}\n")
    [first] = cell.due()
    for rank in range(2):
        cell.prints(rank, "\rsecond: 0/3")
    [second] = cell.due()
    assert isinstance(first, Bars)
    assert isinstance(second, Bars)
    assert first.key != second.key
    assert (first.text, second.text) == ("[0-1] r0: 3/3", "[0-1] second: 0/3")


def test_lines_go_on_beside_bars() -> None:
    cell = Cell(2)
    cell.prints(0, bar(1), "stderr")
    cell.prints(0, "line\n", "stdout")
    text, bars = cell.due(PATIENCE_SECONDS)
    assert text == Text("stdout", "[0] line\n")
    assert isinstance(bars, Bars)


def test_a_bar_that_was_cut_off_by_the_end_stays() -> None:
    cell = Cell(2)
    cell.prints(0, bar(1) + bar(2))
    cell.ends()
    [piece] = cell.due()
    assert isinstance(piece, Bars)
    assert piece.text == "[0] r0: 2/3"


def test_stacked_bars_leave_no_escape_codes() -> None:
    cell = Cell(2)
    cell.prints(0, "\router: 1/2\n\rinner: 1/3\x1b[A", "stderr")
    for piece in cell.due(LATE):
        assert isinstance(piece, Bars)
        assert "\x1b[A" not in piece.text


# one rank alone


def test_a_rank_alone_is_shown_as_it_is_and_at_once() -> None:
    cell = Cell(1)
    cell.prints(0, "a\n\rb")
    cell.prints(0, "c\r\n", "stdout")
    cell.prints(0, "d", "stderr")
    assert cell.due() == [Text("stdout", "a\n\rbc\r\n"), Text("stderr", "d")]
    assert cell.transcript.pause(cell.now) is None


def test_a_rank_alone_has_no_captions() -> None:
    cell = Cell([3])
    cell.draws(3, "x")
    cell.results(3, "42")
    picture, value = cell.pictures()
    assert (picture.caption, value.caption, value.data) == ("", "", {"text/plain": "42"})


def test_a_value_of_a_rank_alone_comes_in_its_place() -> None:
    cell = Cell(1)
    cell.results(0, "1")
    cell.prints(0, "a")
    assert [type(piece) for piece in cell.due()] == [Picture, Text]


# when to look again


def test_nothing_is_due_where_nothing_is_held_back() -> None:
    cell = Cell(2)
    assert cell.transcript.pause(0.0) is None
    cell.prints(0, "a\n")
    cell.prints(1, "a\n")
    cell.due()
    assert cell.transcript.pause(0.0) is None


def test_a_line_that_is_held_back_is_due_when_patience_ends() -> None:
    cell = Cell(2)
    cell.prints(0, "a\n")
    assert cell.transcript.pause(0.01) == pytest.approx(PATIENCE_SECONDS - 0.01)
    assert cell.transcript.pause(LATE) == 0.0


def test_the_start_of_a_line_is_due_too() -> None:
    cell = Cell(2)
    cell.prints(0, "a")
    assert cell.transcript.pause(0.0) == pytest.approx(PARTIAL_SECONDS)
    cell.due(PARTIAL_SECONDS)
    assert cell.transcript.pause(cell.now) is None


def test_values_are_due_when_their_longer_patience_ends() -> None:
    cell = Cell(2)
    cell.results(0, "1")
    assert cell.transcript.pause(0.0) == pytest.approx(RESULT_SECONDS)


# ranks in words


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([5, 0, 2, 1], "0-2,5"), ([0, 2, 4], "0,2,4"), (range(12), "0-11")],
)
def test_ranges_of_ranks(ranks: Iterable[int], text: str) -> None:
    assert rank_range(ranks) == text


# whatever happens

RANKS = 3
LINES = st.text(alphabet="ab ", max_size=3)
# (rank, text, seconds after which what is due is shown, if it is)
SAID = st.lists(
    st.tuples(st.integers(0, RANKS - 1), st.text("ab\n", max_size=6), st.sampled_from([None, 0.0, 0.01, 0.06, 0.3])),
    max_size=25,
)


def expanded(ranks: str) -> list[int]:
    bounds = [part.split("-") for part in ranks.split(",")]
    return [rank for low, *high in bounds for rank in range(int(low), int(high[0] if high else low) + 1)]


@settings(deadline=None, max_examples=100)
@given(said=st.lists(st.tuples(st.integers(0, RANKS - 1), LINES, st.sampled_from([None, 0.0, 0.01, 0.3])), max_size=25))
def test_no_line_is_lost_and_each_rank_keeps_its_order(said: list[tuple[int, str, float | None]]) -> None:
    cell = Cell(RANKS)
    expected: dict[int, list[str]] = {rank: [] for rank in range(RANKS)}
    for rank, line, pause in said:
        cell.prints(rank, f"{line}\n")
        expected[rank].append(line)
        if pause is not None:
            cell.due(pause)
    cell.ends()
    cell.due()
    told: dict[int, list[str]] = {rank: [] for rank in range(RANKS)}
    for line in text_of(cell.shown).split("\n")[:-1]:
        match = re.fullmatch(r"\[([\d,-]+)\] (.*)", line)
        assert match
        for rank in expanded(match[1]):
            told[rank].append(match[2])
    assert told == expected
    assert cell.due(LATE) == []


@settings(deadline=None, max_examples=100)
@given(SAID)
def test_no_text_is_lost_however_it_is_cut_into_parts(said: list[tuple[int, str, float | None]]) -> None:
    cell = Cell(RANKS)
    expected = dict.fromkeys(range(RANKS), "")
    for rank, text, pause in said:
        cell.prints(rank, text)
        expected[rank] += text
        if pause is not None:
            cell.due(pause)
    cell.ends()
    cell.due()
    told, who = dict.fromkeys(range(RANKS), ""), []
    for part in re.split(r"(\[[\d,-]+\] |\n)", text_of(cell.shown)):
        if match := re.fullmatch(r"\[([\d,-]+)\] ", part):
            who = expanded(match[1])
        for rank in who if not match and part != "\n" else ():
            told[rank] += part
    # a line that was left open for another rank's is broken there, so ends of lines may be more
    assert told == {rank: text.replace("\n", "") for rank, text in expected.items()}


@settings(deadline=None, max_examples=100)
@given(SAID)
def test_a_rank_alone_is_told_word_for_word(said: list[tuple[int, str, float | None]]) -> None:
    cell = Cell(1)
    for _, text, pause in said:
        cell.prints(0, text)
        if pause is not None:
            cell.due(pause)
    cell.ends()
    cell.due()
    assert text_of(cell.shown) == "".join(text for _, text, _ in said)


@settings(deadline=None, max_examples=100)
@given(SAID)
def test_what_is_held_back_is_shown_when_its_time_has_come(said: list[tuple[int, str, float | None]]) -> None:
    cell = Cell(RANKS)
    for rank, text, seconds in said:
        cell.prints(rank, text)
        cell.due(seconds or 0.0)
    for _ in range(200):
        pause = cell.transcript.pause(cell.now)
        if pause is None:
            break
        cell.due(pause + 0.001)
    assert cell.transcript.pause(cell.now) is None
    assert cell.due(LATE) == []
