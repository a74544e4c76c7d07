"""The command: what it prints, and that what is wrong is one sentence and status 2."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kalavai_nb import cli
from kalavai_nb.errors import OptionError
from kalavai_nb.planner import command
from kalavai_nb.planner.plan import plan


def test_plan_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "70B", "--gpus", "RTX 3060 x4, 24GB", "--years", "5", "--quant", "int4"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{plan('70B', ['RTX 3060 x4', 24], years=5, quant='int4')!r}\n"
    assert printed.err == ""


def test_plan_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "8B", "--gpus", "24", "--max-len", "8192", "--max-batch", "2", "--json"]
    assert cli.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(plan("8B", [24], max_len=8192, max_batch=2).to_dict()))
    assert printed["fits"] is True


def test_all_options_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "8B", "--gpus", "RTX 3060 x2", "--rtt-ms", "1", "--link-mbit", "1000", "--years", "2", "--json"]
    assert cli.main([*words, "--preset", "article", "--gpu-growth", "2"]) == 0
    options = {"rtt_seconds": 0.001, "link_bits_per_second": 1e9, "years": 2, "preset": "article", "gpu_growth": 2}
    expected = plan("8B", ["RTX 3060 x2"], **options)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", "70B", "--quant", "Q9"], "there is no quantisation 'Q9'"),
        (["plan", "70B", "--gpus", "RTX 306"], "Did you mean 'RTX 3060'"),
        (["plan", "70B", "--max-len", "long"], "invalid int value: 'long'"),
        (["plan", "70B", "--preset", "x"], "there is no preset 'x'"),
        (["plan"], "the following arguments are required: model"),
        (["plan", "70B", "--nonesuch"], "unrecognized arguments: --nonesuch"),
        (["join", "--devises", "1"], "kalavai-nb join --help says what there is. Did you mean '--devices'?"),
        (["invite", "lab", "--role=user", "--use=2", "--expire"], "argument --expires: expected one argument"),
        (
            ["start", "--redy-file=3"],
            "unrecognized arguments: --redy-file=3; kalavai-nb start --help says what there is",
        ),
        (["nonesuch"], "invalid choice: 'nonesuch'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kalavai-nb: ")
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


def test_without_a_verb_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "usage: kalavai-nb" in printed.out
    assert "lend this machine to a pool" in printed.out


def test_help_has_examples_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for part in ("examples:", "--gpus", "--quant", "--years", "--preset", "--max-len", "--json", "article"):
        assert part in text


def test_python_m_is_the_same_and_loads_nothing_heavy() -> None:
    source = (
        "import sys\nfrom kalavai_nb.cli import main\nmain(['plan', '70B', '--gpus', '24', '--years', '1'])\n"
        "print([name for name in ('torch', 'transformers', 'distributed', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    again = subprocess.run([sys.executable, "-m", "kalavai_nb", "plan"], capture_output=True, text=True)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


def test_a_magic_uses_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    options = cli.read_verb(command, ["8B", "--quant", "int8"], "%pool plan")
    assert options
    made = command.make(options, devices=["RTX 3060 x2"])
    assert (made.quant.name, len(made.seats)) == ("int8", 2)
    assert cli.read_verb(command, ["--help"], "%pool plan") is None
    assert "%pool plan" in capsys.readouterr().out
    with pytest.raises(OptionError, match="required: model; %pool plan --help"):
        cli.read_verb(command, [], "%pool plan")
