"""What a cell may ask for, and how it is told that it cannot be meant."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.options import OPTION_NAMES, RunOptions, parse

GIB = 2**30


def read(line: str) -> RunOptions:
    """The options of a ``%%pool`` line."""
    return RunOptions().updated(parse(line))


def value(option: str, given: Any) -> Any:
    """What an option becomes, given as Python value or text."""
    field = {"async": "background", "async_": "background", "rank": "ranks"}.get(option, option)
    return getattr(RunOptions().updated({option: given}), field)


# the line


def test_an_empty_line_gives_nothing() -> None:
    assert parse("") == parse("   ") == {}
    assert read("") == RunOptions()


def test_words_are_keys_and_values() -> None:
    assert parse("gpus=2 type=a100") == {"gpus": "2", "type": "a100"}


def test_a_flag_may_have_a_value() -> None:
    assert parse("--async --dry-run --gpus=2") == {"async": "true", "dry_run": "true", "gpus": "2"}


def test_dashes_in_names_are_underscores() -> None:
    assert parse("on-error=wait") == parse("on_error=wait") == {"on_error": "wait"}


def test_a_value_may_hold_an_equals_sign_quotes_and_spaces() -> None:
    assert parse("host=a=b type='RTX 4090'") == {"host": "a=b", "type": "RTX 4090"}


def test_comments_are_left_out() -> None:
    assert parse("gpus=2 # gpus=4") == {"gpus": "2"}


def test_an_empty_value_is_a_value() -> None:
    assert parse("send=") == {"send": ""}


def test_a_word_that_is_no_option_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'2' is no option: wanted key=value or --flag, such as gpus=2"):
        parse("2")


def test_a_bare_name_of_an_option_is_recognised() -> None:
    with pytest.raises(OptionError, match=r"'gpu' is no option: .* Did you mean 'gpus'\?"):
        parse("gpu 2")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("gpus = 2", "gpus=2"),
        ("gpus =2", "gpus=2"),
        ("per=1 gpus= 2", "gpus=2"),
        ("on-error = wait", "on-error=wait"),
        ("timeout=10 min", "timeout=10m"),
        ("timeout=2 h gpus=2", "timeout=2h"),
        ("vram=24 GB", "vram=24GB"),
    ],
)
def test_spaces_within_an_option_are_named(line: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"no spaces round = or in a value, as in {meant}\\.$"):
        parse(line)


@pytest.mark.parametrize("line", ["timeout=10 gpus", "= 2", "gpus=2 min", "timeout=10 lightyears"])
def test_words_that_belong_to_nothing_are_not_joined(line: str) -> None:
    with pytest.raises(OptionError, match="is no option: wanted key=value or --flag"):
        parse(line)


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="gpus= is given twice: '2' and '3'"):
        parse("gpus=2 gpus=3")


@pytest.mark.parametrize("line", ["on-error=wait on_error=stop", "--dry-run --dry_run"])
def test_an_option_given_twice_with_another_dash_is_refused(line: str) -> None:
    with pytest.raises(OptionError, match="given twice"):
        parse(line)


@pytest.mark.parametrize("line", ["rank=0 ranks=1", "--async background=run"])
def test_an_option_given_under_both_its_names_is_refused(line: str) -> None:
    with pytest.raises(OptionError, match="given twice"):
        read(line)


def test_a_quote_that_does_not_close_is_refused() -> None:
    with pytest.raises(OptionError, match="cannot be read: No closing quotation"):
        parse("type='a100")


# all options


def test_unknown_options_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"there is no option 'gpsu'\. Did you mean 'gpus'\?"):
        read("gpsu=2")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("timout", "timeout"), ("on_eror", "on_error"), ("dryrun", "dry_run"), ("asynch", "async"), ("hosts", "host")],
)
def test_near_names_are_found(typed: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"Did you mean '{meant}'"):
        read(f"{typed}=x")


def test_far_names_are_not_guessed_but_all_are_listed() -> None:
    with pytest.raises(OptionError) as error:
        read("zzz=1")
    assert "Did you mean" not in str(error.value)
    assert str(error.value).endswith(f"The options are: {', '.join(OPTION_NAMES)}.")


def test_the_option_is_called_async_wherever_people_read_it() -> None:
    assert "async" in OPTION_NAMES
    assert "background" not in OPTION_NAMES


def test_option_errors_are_value_errors_of_ours() -> None:
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, KalavaiError)


def test_a_value_that_cannot_be_meant_is_named() -> None:
    with pytest.raises(OptionError) as error:
        read("gpus=two")
    assert str(error.value) == "gpus=two cannot be meant: wanted a number of devices, 'all', or 0 for CPU processes."


def test_what_was_given_before_stays() -> None:
    options = read("gpus=2 timeout=1m").updated({"gpus": 4})
    assert (options.gpus, options.timeout) == (4, 60.0)


def test_options_are_left_as_they_were() -> None:
    options = RunOptions()
    options.updated({"gpus": 4})
    assert options.gpus is None


@pytest.mark.parametrize("field", [field.name for field in fields(RunOptions)])
def test_every_default_may_be_given(field: str) -> None:
    default = getattr(RunOptions(), field)
    assert RunOptions().updated({field: default}) == RunOptions()


def test_a_whole_line_is_read() -> None:
    options = read(
        "gpus=4 per=2 ranks=0 type=a100 vram=24 host=box-* send=a,b out=c scatter=xs timeout=10m wait=30 "
        "on_error=wait show=tabs --async=run --dry-run"
    )
    assert options == RunOptions(
        gpus=4,
        per=2,
        ranks=(0,),
        type="a100",
        vram=24 * GIB,
        host="box-*",
        send=("a", "b"),
        out=("c",),
        scatter=("xs",),
        timeout=600.0,
        wait=30.0,
        on_error="wait",
        show="tabs",
        background="run",
        dry_run=True,
    )


# each option


@pytest.mark.parametrize(("given", "expected"), [("all", None), ("ALL", None), (None, None), ("0", 0), (3, 3)])
def test_gpus(given: Any, expected: int | None) -> None:
    assert value("gpus", given) == expected


@pytest.mark.parametrize("given", ["-1", "2.5", 2.5, True, "", "true", "2,3"])
def test_gpus_that_are_no_number_are_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"gpus=.* cannot be meant: wanted a number of devices"):
        value("gpus", given)


@pytest.mark.parametrize(("given", "expected"), [("1", 1), (2, 2), ("16", 16)])
def test_per(given: Any, expected: int) -> None:
    assert value("per", given) == expected


@pytest.mark.parametrize("given", [0, "0", -1, "x", True, None, 1.5])
def test_devices_per_rank_are_one_or_more(given: Any) -> None:
    with pytest.raises(OptionError, match=r"per=.* cannot be meant: wanted a number of devices per rank, 1 or more"):
        value("per", given)


def test_gpus_are_a_multiple_of_per() -> None:
    assert read("gpus=4 per=2").gpus == 4
    assert read("gpus=0 per=2").gpus == 0
    with pytest.raises(OptionError, match="gpus=3 cannot be shared out with per=2: wanted a multiple of it"):
        read("gpus=3 per=2")


def test_gpus_are_held_against_the_per_of_before() -> None:
    with pytest.raises(OptionError, match="multiple"):
        read("per=2").updated({"gpus": 3})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0", [0]),
        ("0,2", [0, 2]),
        ("2,0,2", [0, 2]),
        ("1:", [1, 2, 3]),
        (":2", [0, 1]),
        ("1:3", [1, 2]),
        ("1-3", [1, 2, 3]),
        ("0,2-3", [0, 2, 3]),
        (3, [3]),
        (slice(1, None, 2), [1, 3]),
        ([0, 3], [0, 3]),
        ((0, slice(2, 4)), [0, 2, 3]),
        (range(2), [0, 1]),
        ((), [0, 1, 2, 3]),
    ],
)
def test_ranks(given: Any, expected: list[int]) -> None:
    assert RunOptions().updated({"ranks": given}).chosen(4) == expected


def test_rank_is_another_name_for_ranks() -> None:
    assert read("rank=1").ranks == (1,)


@pytest.mark.parametrize("given", ["", "a", "0,", "0;1", "1:2:3", None, 1.5, ["a"], [0, None], [1.5]])
def test_ranks_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="ranks="):
        RunOptions().updated({"ranks": given}).chosen(4)


@pytest.mark.parametrize("given", ["4", 4, "0,7", [9]])
def test_ranks_beyond_the_gang_are_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"ranks=\d was asked for, but this gang has the ranks 0 to 3\."):
        RunOptions().updated({"ranks": given}).chosen(4)


@pytest.mark.parametrize("given", [-1, "-1", [0, -2]])
def test_ranks_below_zero_are_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="ranks="):
        RunOptions().updated({"ranks": given}).chosen(4)


def test_a_choice_of_no_rank_is_refused() -> None:
    with pytest.raises(OptionError, match=r"ranks= chooses none of the ranks 0 to 3\."):
        read("ranks=4:").chosen(4)


@pytest.mark.parametrize("option", ["type", "host"])
def test_globs_are_taken_as_they_are(option: str) -> None:
    assert value(option, "box-*") == "box-*"
    assert value(option, "") == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("24", 24 * GIB),
        (24, 24 * GIB),
        (0.5, GIB // 2),
        ("24GB", 24 * GIB),
        ("24GiB", 24 * GIB),
        ("24 gb", 24 * GIB),
        ("512M", 512 * 2**20),
        ("1.5T", 3 * 2**39),
        ("64kB", 64 * 2**10),
    ],
)
def test_vram(given: Any, expected: int) -> None:
    assert value("vram", given) == expected


@pytest.mark.parametrize("given", ["", "big", "-1", "24XB", "1,5", None, True])
def test_vram_that_is_no_size_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"vram=.* cannot be meant: wanted gigabytes, such as 24 or 24GB"):
        value("vram", given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("auto", None), ("none", ()), ("", ()), ("a", ("a",)), ("a,b", ("a", "b")), (["a", "b"], ("a", "b")), ((), ())],
)
def test_send(given: Any, expected: tuple[str, ...] | None) -> None:
    assert value("send", given) == expected


@pytest.mark.parametrize("option", ["out", "scatter"])
@pytest.mark.parametrize(
    ("given", "expected"), [("", ()), ("loss", ("loss",)), ("größe,b2", ("größe", "b2")), (("a", "b"), ("a", "b"))]
)
def test_names(option: str, given: Any, expected: tuple[str, ...]) -> None:
    assert value(option, given) == expected


@pytest.mark.parametrize("option", ["send", "out", "scatter"])
@pytest.mark.parametrize("given", ["1a", "a b", "a,,b", "a,", "a.b", "a-b", 3])
def test_names_that_are_none_are_refused(option: str, given: Any) -> None:
    with pytest.raises(OptionError, match=f"{option}="):
        value(option, given)


@pytest.mark.parametrize("option", ["timeout", "wait"])
@pytest.mark.parametrize(
    ("given", "expected"), [("10m", 600.0), ("90", 90.0), (1.5, 1.5), ("0", 0.0), ("none", None), (None, None)]
)
def test_times(option: str, given: Any, expected: float | None) -> None:
    assert value(option, given) == expected


@pytest.mark.parametrize("option", ["timeout", "wait"])
@pytest.mark.parametrize("given", ["soon", "-1", "", "10 minutes", True])
def test_times_that_are_none_are_refused(option: str, given: Any) -> None:
    with pytest.raises(OptionError, match=f"{option}=.* cannot be meant: wanted a time such as 30s, 10m or 2h"):
        value(option, given)


@pytest.mark.parametrize(
    ("option", "choices"),
    [("on_error", ["stop", "wait", "continue"]), ("show", ["merge", "tabs", "rank0", "none"])],
)
def test_choices(option: str, choices: list[str]) -> None:
    assert [value(option, choice) for choice in choices] == choices
    with pytest.raises(OptionError, match=f"wanted one of {', '.join(choices)}"):
        value(option, "other")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("true", True), ("yes", True), ("1", True), (True, True), ("false", False), ("no", False), (False, False)],
)
def test_dry_run(given: Any, expected: bool) -> None:
    assert value("dry_run", given) is expected


def test_a_flag_takes_no_other_value() -> None:
    with pytest.raises(OptionError, match="dry_run=maybe cannot be meant: it is a flag and takes no value"):
        read("--dry-run=maybe")


@pytest.mark.parametrize("option", ["async", "async_"])
@pytest.mark.parametrize(("given", "expected"), [(True, ""), ("", ""), ("run", "run"), (False, None), (None, None)])
def test_async_may_name_its_handle(option: str, given: Any, expected: str | None) -> None:
    assert value(option, given) == expected


def test_async_is_a_flag() -> None:
    assert read("--async").background == ""
    assert read("--async=handle").background == "handle"
    assert read("async=handle").background == "handle"


def test_async_can_be_switched_off_like_any_flag() -> None:
    assert read("--async=false").background is None


@pytest.mark.parametrize("given", ["2nd", "a.b"])
def test_a_handle_has_a_name_that_python_can_bind(given: str) -> None:
    with pytest.raises(OptionError, match="cannot be meant: wanted names"):
        value("async", given)


def test_a_handle_has_one_name() -> None:
    with pytest.raises(OptionError, match="async=a,b cannot be meant: wanted"):
        value("async", "a,b")


# which ranks run


def test_all_ranks_run_where_none_is_chosen() -> None:
    assert RunOptions().chosen(3) == [0, 1, 2]


def test_ranks_run_once_and_in_order() -> None:
    assert read("ranks=3,1-2,2:").chosen(4) == [1, 2, 3]
