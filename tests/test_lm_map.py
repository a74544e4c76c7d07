"""Rows through a model: each once and in order, whatever the data is and whatever is killed."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import MissingExtra, ModelError, OptionError
from kalavai_nb.lm.batch.dataset import read_dataset
from kalavai_nb.lm.batch.display import Progress
from kalavai_nb.lm.batch.feed import AHEAD_WINDOWS, BATCHES
from kalavai_nb.lm.batch.output import AHEAD, OLD, OUTPUT, Output
from kalavai_nb.lm.sharded_lm import ShardedLM
from notebook import Notebook, listens_on
from tiny_lm import tiny_lm

MAX_BATCH = 4
WORDS = ["sea", "tea", "bee", "key"]
# as a person would choose them; the tiny model has much to say about nothing
SAMPLING: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(devices=2, quiet=True) as pool:
        yield pool


@pytest.fixture(scope="module")
def lm(pool: kn.Pool, tiny: Path) -> Iterator[ShardedLM]:
    with pool.load(tiny, gpus=1, max_len=64, max_batch=MAX_BATCH, show=False) as lm:
        yield lm


def mapped(lm: ShardedLM, dataset: Any, prompt: Any = None, **options: Any) -> Any:
    """A run without a picture and without further copies, unless asked for."""
    return lm.map(dataset, prompt, **{"show": False, "replicas": 1, **SAMPLING, **options})


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / OUTPUT).read_bytes().splitlines()]


def outputs(folder: Path) -> list[str]:
    """What was made of the rows, which must be there once each, and in order."""
    rows = records(folder)
    assert [row["_row"] for row in rows] == list(range(len(rows)))
    assert not (folder / AHEAD).exists()
    return [row["output"] for row in rows]


# forms of data


class Rows:
    """As a Dataset of Hugging Face is looked at: a length, and dicts to go through."""

    def __len__(self) -> int:
        return len(WORDS)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"text": word, "n": n} for n, word in enumerate(WORDS)])


FORMS = {
    "texts": lambda folder: WORDS,
    "dicts": lambda folder: list(Rows()),
    "a generator": lambda folder: iter(Rows()),
    "an object with rows": lambda folder: Rows(),
    "a series": lambda folder: frame()["text"],
    "a frame": lambda folder: frame(),
    "jsonl": lambda folder: write(folder / "rows.jsonl", "\n".join(json.dumps(row) for row in Rows())),
    "csv": lambda folder: write(folder / "rows.csv", "\ufefftext,n\n" + "\n".join(f'"{w}",{n}' for n, w in each())),
    "tsv": lambda folder: str(write(folder / "rows.tsv", "text\tn\n" + "\n".join(f"{w}\t{n}" for n, w in each()))),
    "parquet": lambda folder: parquet(folder / "rows.parquet"),
}


def each() -> Iterator[tuple[int, str]]:
    return enumerate(WORDS)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def frame(**columns: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(columns or list(Rows()))


def parquet(path: Path) -> Path:
    pytest.importorskip("pyarrow", exc_type=ImportError)
    frame().to_parquet(path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_what_generate_gives(lm: ShardedLM, tmp_path: Path, form: str) -> None:
    run = mapped(lm, FORMS[form](tmp_path), "Say {text}!", out=tmp_path / "out").wait()
    assert outputs(tmp_path / "out") == lm.generate([f"Say {word}!" for word in WORDS], **SAMPLING)
    assert [row["text"] for row in run] == WORDS
    assert len(run) == run.done == 4
    assert not run.is_running
    assert run.table()["text"].tolist() == WORDS


SAID = [{"role": "user", "content": "sea"}]


@pytest.mark.parametrize(
    ("row", "prompt", "said"),
    [
        ("sea", None, "sea"),
        ({"prompt": "sea", "text": "tea"}, None, "sea"),
        (SAID, None, SAID),
        ({"messages": SAID}, None, SAID),
        ([115, 101, 97], None, [115, 101, 97]),
        ({"word": "sea"}, "word", "sea"),
        ({"said": SAID}, "said", SAID),
        ({"deep": {"word": "sea"}}, "{deep[word]}{{}}", "sea{}"),
        ({"word": "sea"}, lambda row: [{"role": "user", "content": row["word"]}], SAID),
        ("SEA", lambda text: text.lower(), "sea"),
    ],
)
def test_a_prompt_is_a_template_a_column_or_a_function(
    lm: ShardedLM, tmp_path: Path, row: Any, prompt: Any, said: Any
) -> None:
    [made] = mapped(lm, [row], prompt, out=tmp_path).wait()
    expected = lm.generate(said, details=True, **SAMPLING)
    assert (made["output"], made["finish_reason"]) == (expected.text, expected.finish_reason)
    assert (made["prompt_tokens"], made["output_tokens"]) == (expected.prompt_tokens, len(expected.token_ids))


def test_columns_are_kept_as_far_as_json_can_say_them(lm: ShardedLM, tmp_path: Path) -> None:
    odd = {
        "text": "half \ud83d of a character",
        "output": "what I expected",
        "when": datetime.date(2026, 5, 4),
        "nothing": float("nan"),
        "number": np.int64(3),
        "vector": np.arange(3),
        "pair": (1, 2.5),
        "bytes": b"ab\xff",
        "thing": object,
    }
    odd["itself"] = odd
    [row] = mapped(lm, [odd], lambda row: "sea", out=tmp_path, logprobs=1).wait()
    assert row["output_of_row"] == "what I expected"
    assert row["text"] == odd["text"]
    assert (row["when"], row["nothing"], row["bytes"]) == ("2026-05-04", "nan", "ab\\xff")
    assert (row["number"], row["vector"], row["pair"], row["thing"]) == (3, [0, 1, 2], [1, 2.5], "<class 'object'>")
    assert row["_note"] == "made into text: when, nothing, bytes, thing, itself"
    assert len(row["logprobs"]) == row["output_tokens"]
    # and it is known again
    assert len(mapped(lm, [odd, "tea"], lambda row: "sea", out=tmp_path, logprobs=1).wait()) == 2


def test_an_index_that_says_something_is_kept(lm: ShardedLM, tmp_path: Path) -> None:
    named = frame(text=["sea", None, "tea"], n=[1.5, None, 2]).set_axis(["x", "y", "z"])
    run = mapped(lm, named, out=tmp_path).wait()
    assert [(row["index"], row["text"], row["n"]) for row in run] == [
        ("x", "sea", 1.5),
        ("y", None, None),
        ("z", "tea", 2.0),
    ]
    assert [row["_row"] for row in run.failed] == [1]


def test_parquet_without_its_package_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", "")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="pip install pyarrow"):
            read_dataset(path)


# bad rows


def test_bad_rows_are_recorded_and_passed_over(
    lm: ShardedLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        '{"text": "sea"}',
        '{"text": "' + "long " * 20 + '"}',
        '{"text": "to',
        '{"word": "tea"}',
        '{"text": null}',
        "",
        "17",
        '{"text": ["tea"]}',
        '{"text": "longer ' + "and longer " * 20 + '"}',
        '"tea"',
    ]
    path = write(tmp_path / "rows.jsonl", "\n".join(lines))
    run = mapped(lm, path, "text", out=tmp_path / "out", show=True).wait()
    errors = {row["_row"]: row["error"] for row in run.failed}
    assert {index: text.split(":")[0][:40] for index, text in errors.items()} == {
        1: "the prompt has 100 tokens, and with max_",
        2: "line 3 of rows.jsonl is no JSON",
        3: "there is no column 'text'; the row has w",
        4: "the column 'text' has no value in this r",
        5: "a row is a text, a dict, messages or tok",
        6: "a prompt is a text, a list of messages (",
        7: "the prompt has 227 tokens, and with max_",
    }
    assert [row["output"] for row in run][:1] + [row["output"] for row in run][8:] == [
        lm.generate(["sea"], **SAMPLING)[0],
        run.table()["output"][8],
    ]
    assert records(tmp_path / "out")[2]["row"] == '{"text": "to'
    shown = capsys.readouterr().err
    assert "9/9 rows" in shown
    assert "7 failed" in shown
    assert "2 × the prompt has … tokens" in shown, "equal errors are folded"


def test_what_a_function_raises_is_an_error_of_its_row(lm: ShardedLM, tmp_path: Path) -> None:
    def prompt(row: dict[str, int]) -> str:
        return "sea" * (6 // row["n"])

    run = mapped(lm, [{"n": n} for n in (1, 0, 2)], prompt, out=tmp_path).wait()
    assert [row.get("error") for row in run] == [None, "ZeroDivisionError: integer division or modulo by zero", None]


def test_a_row_that_the_model_cannot_do_takes_no_other_with_it(lm: ShardedLM, tmp_path: Path) -> None:
    rows = [[10_000_000] if n == 3 else WORDS[n % 4] for n in range(8)]
    run = mapped(lm, rows, out=tmp_path).wait()
    assert [row["_row"] for row in run.failed] == [3]
    assert "this model has the tokens 0 to" in run.failed[0]["error"]
    assert outputs(tmp_path)[4:] == lm.generate([WORDS[n % 4] for n in range(8)], **SAMPLING)[4:]


# reading


def test_a_generator_is_read_no_further_than_the_model_needs(lm: ShardedLM, tmp_path: Path) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for read in itertools.count(1):
            yield f"row {read}"

    run = mapped(lm, endless(), out=tmp_path, show=True)
    for row in itertools.islice(run, 60):
        assert read - run.done <= AHEAD_WINDOWS * BATCHES * MAX_BATCH
        assert row["text"] == f"row {row['_row'] + 1}"
    run.stop()
    assert "stopped" in repr(run)
    assert read - run._output.finished <= BATCHES * MAX_BATCH
    assert len(outputs_so_far(tmp_path)) == run.done >= 60


def outputs_so_far(folder: Path) -> list[dict[str, Any]]:
    rows = records(folder)
    assert [row["_row"] for row in rows] == list(range(len(rows)))
    return rows


def test_a_dataset_that_breaks_ends_the_run_and_keeps_what_is_done(lm: ShardedLM, tmp_path: Path) -> None:
    def breaking(at: int) -> Iterator[str]:
        for n in range(10):
            if n == at:
                raise OSError("the disk is gone")
            yield WORDS[n % 4]

    run = mapped(lm, breaking(6), out=tmp_path)
    with pytest.raises(OptionError, match=r"could not be read at row 6: OSError: the disk is gone\.\n6 rows are done"):
        run.wait()
    assert "cut off" in repr(run)
    mapped(lm, breaking(11), out=tmp_path).wait()
    assert len(outputs(tmp_path)) == 10


# going on


def test_the_same_again_does_what_is_not_done(lm: ShardedLM, tmp_path: Path) -> None:
    rows = [f"row {n}" for n in range(30)]
    mapped(lm, rows[:10], out=tmp_path).wait()
    made = (tmp_path / OUTPUT).stat()
    run = mapped(lm, rows[:10], out=tmp_path).wait()
    assert (tmp_path / OUTPUT).stat().st_mtime_ns == made.st_mtime_ns, "nothing is done again"
    assert len(run) == 10
    # rows that have come since then
    mapped(lm, iter(rows), out=tmp_path).wait()
    assert outputs(tmp_path) == lm.generate(rows, **SAMPLING)


def test_a_seed_that_was_drawn_is_kept(lm: ShardedLM, tmp_path: Path) -> None:
    rows = [f"row {n}" for n in range(12)]
    mapped(lm, rows[:4], out=tmp_path, seed=None).wait()
    mapped(lm, rows, out=tmp_path, seed=None).wait()
    seed = json.loads((tmp_path / "job.json").read_text())["sampling"]["seed"]
    assert outputs(tmp_path) == lm.generate(rows, **{**SAMPLING, "seed": seed})


def test_lines_that_were_cut_off_are_made_again(lm: ShardedLM, tmp_path: Path) -> None:
    rows = [f"row {n}" for n in range(8)]
    mapped(lm, rows, out=tmp_path).wait()
    whole = (tmp_path / OUTPUT).read_bytes()
    for torn in (whole[:-1], whole[: len(whole) // 2], whole[:-40] + bytes(40), whole[:5], b""):
        (tmp_path / OUTPUT).write_bytes(torn)
        mapped(lm, rows, out=tmp_path).wait()
        assert (tmp_path / OUTPUT).read_bytes() == whole


@pytest.mark.parametrize("seed", range(6))
def test_no_finished_row_is_lost_wherever_it_ends(tmp_path: Path, seed: int) -> None:
    """The writer ends between any two bytes that it writes."""
    chance = random.Random(seed)
    folder, copy = tmp_path / "0", tmp_path / "copy"
    folder.mkdir()
    output, told = Output(folder), set()
    while output.finished < 40:
        index = chance.choice([n for n in range(output.done, min(40, output.done + 12)) if n not in told])
        output.put(index, b'{"_row": %d, "output": "made"}\n' % index)
        told.add(index)
        if chance.random() < 0.2:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            name = chance.choice([OUTPUT, AHEAD])
            with (copy / name).open("ab") as file:
                file.write(b'{"_row": %d, "outp' % output.done)
            output.close()
            folder = copy.rename(tmp_path / str(len(told)))
            output = Output(folder)
            assert output.finished == len(told)
    output.close()
    assert len(outputs(folder)) == 40


def plain(text: str) -> str:
    return f"Say {text}"


CHANGES = {
    "prompt": ({"prompt": "Sing {text}"}, r"prompt was 'Say \{text\}', and is 'Sing \{text\}'"),
    "to a function": ({"prompt": plain}, r"prompt was 'Say \{text\}', and is 'plain\(\)'"),
    "tokens": ({"max_new_tokens": 5}, "max_new_tokens was 4, and is 5"),
    "seed": ({"seed": 6}, "seed was 5, and is 6"),
    "stop": ({"stop": "x"}, r"stop was \[\], and is \['x'\]"),
    "rows": ({"dataset": ["sea", "TEA", "bee"]}, "row 1 had text='tea', and has 'TEA'"),
    "fewer rows": ({"dataset": ["sea"]}, "only 1 rows"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_job_is_refused_with_what_has_changed(lm: ShardedLM, tmp_path: Path, what: str) -> None:
    job: dict[str, Any] = {"dataset": WORDS[:3], "prompt": "Say {text}"}
    mapped(lm, **job, out=tmp_path).wait()
    change, said = CHANGES[what]
    before = (tmp_path / OUTPUT).read_bytes()
    with pytest.raises(OptionError, match=f"(?s)3 rows of another job: .*{said}.*another out=, or resume=False"):
        mapped(lm, **{**job, **change}, out=tmp_path)
    assert (tmp_path / OUTPUT).read_bytes() == before
    run = mapped(lm, **{**job, **change}, out=tmp_path, resume=False).wait()
    assert len(run) == len(outputs(tmp_path)) == len(change.get("dataset", WORDS[:3]))
    assert (tmp_path / OLD).read_bytes() == before


def test_a_changed_function_is_noticed_and_a_changed_comment_is_not(lm: ShardedLM, tmp_path: Path) -> None:
    define = "def prompt(text):{comment}\n    return {how} + text\n"
    spaces: list[dict[str, Any]] = [{"__name__": "__main__"} for _ in range(3)]
    exec(define.format(comment="", how="'Say '"), spaces[0])
    exec(define.format(comment="  # politely", how="'Say '"), spaces[1])
    exec(define.format(comment="", how="'Sing '"), spaces[2])
    mapped(lm, WORDS[:2], spaces[0]["prompt"], out=tmp_path).wait()
    mapped(lm, WORDS[:3], spaces[1]["prompt"], out=tmp_path).wait()
    with pytest.raises(OptionError, match=r"the function prompt\(\) has changed"):
        mapped(lm, WORDS, spaces[2]["prompt"], out=tmp_path)


def test_rows_of_a_generator_are_compared_when_they_come(lm: ShardedLM, tmp_path: Path) -> None:
    mapped(lm, iter(WORDS), out=tmp_path).wait()
    with pytest.raises(OptionError, match=r"row 2 had text='bee', and has 'BEE'\.\n4 rows are done .* resume=False"):
        mapped(lm, iter(["sea", "tea", "BEE", "key", "pea"]), out=tmp_path).wait()
    assert len(outputs(tmp_path)) == 4


def test_a_file_that_no_run_has_made_is_left_alone(lm: ShardedLM, tmp_path: Path) -> None:
    write(tmp_path / OUTPUT, '{"_row": 0, "output": "mine"}\n')
    with pytest.raises(OptionError, match=r"without a job\.json"):
        mapped(lm, WORDS, out=tmp_path)
    assert records(tmp_path) == [{"_row": 0, "output": "mine"}]


def test_one_run_at_a_time_in_a_folder(lm: ShardedLM, tmp_path: Path) -> None:
    may_end = threading.Event()

    def waiting() -> Iterator[str]:
        yield from WORDS
        may_end.wait()

    run = mapped(lm, waiting(), out=tmp_path)
    with pytest.raises(OptionError, match=f"another run writes to .*process {os.getpid()} on"):
        mapped(lm, WORDS, out=tmp_path)
    may_end.set()
    assert len(run.wait()) == 4
    assert len(mapped(lm, WORDS, out=tmp_path).wait()) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": 5}, "a dataset is"),
        ({"dataset": {"text": ["sea"]}}, "got a dict with the keys text"),
        ({"dataset": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ({"dataset": __file__}, r"ends in '\.py'"),
        ({"prompt": 5}, "prompt= wants"),
        ({"prompt": "Say {text"}, "is no template"),
        ({"prompt": "Say {}"}, "without the name of a column"),
        ({"out": 5}, "out= wants the path"),
        ({"out": __file__}, "wants a folder"),
        ({"replicas": 0}, "replicas= wants"),
        ({"temperature": -1}, "temperature= wants"),
        ({"max_tokens": 5}, "Did you mean 'max_new_tokens'"),
        ({"replica": 2}, "Did you mean 'replicas'"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    lm: ShardedLM, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        mapped(lm, **{"dataset": WORDS, "out": tmp_path, **options})


# faults


def test_an_interrupt_while_waiting_keeps_what_is_done(lm: ShardedLM, tmp_path: Path) -> None:
    def interrupting() -> Iterator[str]:
        for n in range(60):
            if n == 40:
                os.kill(os.getpid(), signal.SIGINT)
            yield f"row {n}"

    run = mapped(lm, interrupting(), out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    assert not run.is_running
    assert 0 < run.done < 60
    assert "stopped" in repr(run)
    rows = [f"row {n}" for n in range(60)]
    mapped(lm, rows, out=tmp_path).wait()
    assert outputs(tmp_path) == lm.generate(rows, **SAMPLING)


def test_a_killed_stage_costs_no_row(lm: ShardedLM, tmp_path: Path) -> None:
    def killing() -> Iterator[str]:
        for n in range(40):
            if n == 20:
                psutil.Process(lm.stages[0].pid).kill()
            yield f"row {n}"

    mapped(lm, killing(), out=tmp_path).wait()
    assert outputs(tmp_path) == lm.generate([f"row {n}" for n in range(40)], **SAMPLING)


def test_a_model_that_is_closed_says_how_to_go_on(pool: kn.Pool, lm: ShardedLM, tiny: Path, tmp_path: Path) -> None:
    other = pool.load(tiny, gpus=1, max_len=64, max_batch=MAX_BATCH, show=False)

    def closing() -> Iterator[str]:
        for n in range(40):
            if n == 20:
                other.close()
            yield f"row {n}"

    run = mapped(other, closing(), out=tmp_path)
    with pytest.raises(ModelError, match=r"(?s)was closed.*rows are done and kept in .*load the model again"):
        run.wait()
    assert run.done < 40
    assert not run.failed
    mapped(lm, [f"row {n}" for n in range(40)], out=tmp_path).wait()
    assert outputs(tmp_path) == lm.generate([f"row {n}" for n in range(40)], **SAMPLING)


def test_free_devices_help_for_as_long_as_it_runs(pool: kn.Pool, lm: ShardedLM, tmp_path: Path) -> None:
    """Rows come until there is a second copy of the model, and some more."""

    def until_helped() -> Iterator[str]:
        after = 0
        for n in itertools.count():
            after += len(lm._rings.all) == 2
            if after > 30:
                return
            yield f"row {n}"

    run = mapped(lm, until_helped(), out=tmp_path, replicas="auto").wait()
    assert len(lm._rings.all) == 1
    while len(pool.snapshot().leases) > 1:  # the ledger hears of it a moment later
        time.sleep(0.01)
    assert outputs(tmp_path) == lm.generate([f"row {n}" for n in range(run.done)], **SAMPLING)


OPENING = """
import os, signal, threading
import kalavai_nb as kn
pool = kn.Pool(devices=3, quiet=True)
lm = pool.load({tiny!r}, gpus=2, max_len=64, spares=0, show=False)
print(lm.stages[1].device.worker)
"""
RUN = """
def rows():
    for n in range(500):
        if n == 400:
            threading.Event().wait()
        yield f"row {{n}}"
run = lm.map(rows(), "Say {{text}}", out="out", replicas=1, **{sampling!r})
for row in run:
    if row["_row"] == 100:
        os.kill({worker}, signal.SIGKILL)
    if row["_row"] == 250:
        print("at 250:", lm.notes)
"""


def test_five_hundred_prompts_killed_twice(
    lm: ShardedLM, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = {**SAMPLING, "max_new_tokens": 3}
    with Notebook(cwd=str(tmp_path)) as notebook:
        address = notebook.ok(OPENING.format(tiny=str(tiny))).stream().strip()
        worker = next(process for process in notebook.descendants() if listens_on(process, address))
        cell = notebook.wait_for_text(notebook.begin(RUN.format(sampling=sampling, worker=worker.pid)), "at 250:")
        notebook.kill()
    assert "was lost with its worker" in cell.text
    assert re.search(r"map tiny\d+ → out/output.jsonl \d+ rows; [\d,]+ tokens/s", cell.text)
    folder = tmp_path / "out"
    before = (folder / OUTPUT).read_bytes()
    assert 250 < before.count(b"\n") <= 400
    rows = [f"row {n}" for n in range(500)]
    mapped(lm, rows, "Say {text}", out=folder, show=True, **{"max_new_tokens": 3}).wait()
    assert re.search(r"500/500 rows; .* \d+ from before", capsys.readouterr().err)
    assert (folder / OUTPUT).read_bytes().startswith(before)
    assert [row["text"] for row in records(folder)] == rows
    assert outputs(folder) == lm.generate([f"Say {row}" for row in rows], **sampling)


# the picture


def test_a_picture_says_how_far_it_is_and_what_failed() -> None:
    progress = Progress("map", total=100, had=10, done=40, tokens=500, started=0.0)
    for tokens in (512, 600, 731):
        progress.fail(f"the prompt has {tokens} tokens <b>")
    assert progress.text(15.0).splitlines() == [
        "map [████████████··················] 40/100 rows; 33 tokens/s; 15.0 s; about 30.0 s left; 10 from before; "
        "3 failed",
        "  3 × the prompt has … tokens <b>",
    ]
    assert "<progress value='40' max='100'>" in progress.html(15.0)
    assert "&lt;b&gt;" in progress.html(15.0)
    endless = Progress("map", done=40, started=0.0)
    assert endless.line(4.0).startswith("map: 40 rows; ")
