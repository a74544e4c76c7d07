"""The table of benchmarks: what a bound means, and that the README shows what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks.table import COLUMNS, Row, figure, markdown, spread

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("ours", "at_least", "of_ratio", "met"),
    [
        (3.0, False, False, True),
        (5.0, False, False, False),
        (5.0, True, False, True),
        (3.0, True, False, False),
        (7.0, False, True, True),
        (9.0, False, True, False),
        (81.0, True, True, True),
        (79.0, True, True, False),
    ],
)
def test_a_bound_is_on_the_figure_or_on_its_ratio_to_the_best_peer(
    ours: float, at_least: bool, of_ratio: bool, met: bool
) -> None:
    # where less is better the best peer has 2, where more is, 20
    row = figure("what", ours, "s", 4, {"slow": 20, "quick": 2}, at_least=at_least, of_ratio=of_ratio)
    assert row.met is met
    assert row.ratio == ours / (20 if at_least else 2)


def test_the_table_begins_with_ratios_and_says_what_falls_short() -> None:
    rows = [
        Row("without peers", "3 of 3"),
        figure("late | slow", 3, "s", 1, {"peer": 2}, of_ratio=True),
        figure("fine", 1, "s", 4, {"peer": 2}),
    ]
    head, _, *lines = markdown(rows).splitlines()
    assert head == f"| {' | '.join(COLUMNS)} |"
    assert lines[0] == r"| 1.50 ↓ | late \| slow | 3 s | peer 2 s | ≤ 1 × | **no** |  |"
    assert lines[1].startswith("| 0.50 ↓ | fine | 1 s | peer 2 s | ≤ 4 s | yes |")
    assert lines[2] == "|  | without peers | 3 of 3 |  |  |  |  |"


def test_few_values_are_told_by_their_ends_and_many_by_deciles() -> None:
    assert spread([3, 1, 2], "s") == "1 … 3 s"
    assert spread(range(101)) == "p10 9.2 … p90 90.8 ms"


def test_the_readme_shows_what_the_documentation_has() -> None:
    shown, page = (_block(ROOT / name) for name in ("README.md", "docs/measurements.md"))
    assert shown[0].startswith("Measured on 20")
    assert shown[0] == page[0]
    compared = [row.split(" | ")[:4] for row in page if row.startswith("| ") and row.split(" | ")[3]]
    assert [row.removesuffix(" |").split(" | ") for row in shown if row.startswith("| ")] == compared
    assert len(compared) > 10


def _block(page: Path) -> list[str]:
    """What stands between the marks."""
    found = re.search(r"<!-- benchmarks -->\n(.*)<!-- end of benchmarks -->", page.read_text(), re.DOTALL)
    assert found
    return list(filter(None, found[1].splitlines()))
