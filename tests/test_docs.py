"""The documentation says what is so: its error texts, links, snippets and options are those of the sources."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import kalavai_nb as kn
from kalavai_nb.lm.generation import read_sampling
from kalavai_nb.options import OPTION_NAMES
from kalavai_nb.snapshot import Snapshot

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *sorted((ROOT / "examples").glob("*.md"))]
# stands for what an f-string fills in
HOLE = "\0"
LEAST_LETTERS = 4
QUOTED = re.compile(r"'([^'\n]+)'|\"([^\"\n]+)\"")
MADE = "_made/"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# troubleshooting.md: texts that the sources can say


@cache
def said_by_sources() -> tuple[str, ...]:
    """All texts of the package with holes where something is filled in, and what browsers show."""
    python = [text for path in sorted((ROOT / "kalavai_nb").rglob("*.py")) for text in texts_of(path)]
    shown = [path.read_text() for path in sorted((ROOT / "labextension" / "src").rglob("*.ts*"))]
    strings = [
        text for source in shown for groups in re.findall(r"'([^'\n]+)'|\"([^\"\n]+)\"", source) for text in groups
    ]
    return (*python, *filter(None, strings))


def texts_of(path: Path) -> Iterator[str]:
    """The strings of a file, without its docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def terms() -> list[str]:
    return re.findall(r"^`(.+)`\n: ", (DOCS / "troubleshooting.md").read_text(), re.M)


def parts_of(term: str) -> list[str]:
    """What is fixed in a text that has … for the rest."""
    parts = [part.strip() for part in term.split("…")]
    return [part for part in parts if sum(map(str.isalpha, part)) >= LEAST_LETTERS]


def is_said(term: str) -> bool:
    """Whether one text has all fixed parts in their order, or each part is in one: sentences are put together."""
    parts = parts_of(term)
    together = re.compile(".*".join(map(re.escape, parts)), re.S)
    return bool(parts) and (
        any(map(together.search, said_by_sources()))
        or all(any(part in said for said in said_by_sources()) for part in parts)
    )


@pytest.mark.parametrize("term", terms())
def test_an_error_text_stands_in_the_sources(term: str) -> None:
    assert is_said(term)


def test_there_are_texts_for_what_people_meet_each_once_and_wrong_ones_are_found() -> None:
    assert len(terms()) == len(set(terms())) > 70
    # a word that was changed, and one that only a docstring of errors.py has
    assert not is_said("asked for …, but the shed has …")
    assert not is_said("more devices than the pool has, or than came free within")


# links

LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
DIRECTIVE = re.compile(r"^```\{(?:include|image)\} (\S+)$", re.M)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.M | re.S)


def links_of(page: Path) -> Iterator[str]:
    text = page.read_text()
    without_code = re.sub(r"^```(?!\{).*?^```", "", text, flags=re.M | re.S)
    for found in LINK.findall(without_code):
        yield from filter(None, found)
    yield from DIRECTIVE.findall(text)


def anchors_of(page: Path) -> set[str]:
    """What a heading is called in an address, as GitHub and MyST make it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if MADE in path:
        # made at each build: a notebook of examples/, or a part that from_sources.py names
        made = path.partition(MADE)[2]
        return (ROOT / made).exists() or f'"{made.removesuffix(".md")}":' in (DOCS / "from_sources.py").read_text()
    return target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors_of(target))


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_what_is_linked_is_there(page: Path) -> None:
    own = [link for link in links_of(page) if not re.match(r"[a-z]+:", link)]
    assert not [link for link in own if not is_there(page, link)]


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {
        line.strip()
        for page in PAGES
        for tree in TOCTREE.findall(page.read_text())
        for line in tree.splitlines()
        if line and not line.startswith(":")
    }
    assert {page.stem for page in PAGES} - listed == {"index"}
    assert not [name for name in listed if MADE not in name and not (DOCS / f"{name}.md").exists()]


# snippets

SNIPPET = re.compile(r"^```(?:\{code-block\} )?python\n(.*?)^```", re.M | re.S)
# what the pages call what they hold, and what that is
HELD: dict[str, Any] = {
    "kn": kn,
    "pool": kn.Pool,
    "sweep": kn.Sweep,
    "search": kn.Sweep,
    "lm": kn.ShardedLM,
    "trial": kn.LiveTrial,
    "plan": kn.Plan,
    "snapshot": Snapshot,
    "job": kn.CellRun,
}
# what __init__ sets
OWN = {
    "name",
    "fn",
    "tokenizer",
    "max_len",
    "index",
    "attempt",
    "seed",
    "device",
    "gpus",
    "models",
    "devices",
    "alerts",
}


def snippets() -> list[tuple[str, str]]:
    return [(name_of(page), code) for page in WRITTEN for code in SNIPPET.findall(page.read_text())]


def parsed(code: str) -> ast.Module:
    plain = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    return ast.parse("\n".join(plain), feature_version=(3, 11))


@pytest.mark.parametrize("page", sorted({page for page, _ in snippets()}))
def test_snippets_are_python_and_use_names_that_exist(page: str) -> None:
    unknown = []
    for code in [code for where, code in snippets() if where == page]:
        for node in ast.walk(parsed(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in HELD:
                unknown += [] if has(HELD[node.value.id], node.attr) else [ast.unparse(node)]
    assert not unknown


CALL = re.compile(r"`(kn|pool|sweep|lm|trial)\.([a-z_]\w*)", re.IGNORECASE)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_names_in_sentences_exist(page: Path) -> None:
    assert not [f"{held}.{name}" for held, name in CALL.findall(page.read_text()) if not has(HELD[held], name)]


def has(held: Any, name: str) -> bool:
    fields = getattr(held, "__dataclass_fields__", {})
    return hasattr(held, name) or name in fields or (held is not kn and name in OWN)


# tables of options


def expanded(page: str) -> str:
    """A page with what it includes of the README."""
    text = (DOCS / page).read_text()
    readme = (ROOT / "README.md").read_text()
    for begin, end in re.findall(r":start-after: (.+)\n:end-before: (.+)\n", text):
        assert readme.count(begin) == 1
        text += readme.partition(begin)[2].partition(end)[0]
    return text


def says(text: str, option: str) -> bool:
    return re.search(rf"`(?:--)?(?:[^`]*[ ,`])?{option}(?:=|`)", text) is not None


def parameters(call: Any, without: set[str]) -> list[str]:
    given = inspect.signature(call).parameters.values()
    return [each.name for each in given if each.kind is each.KEYWORD_ONLY and each.name not in without]


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ("cells.md", list(OPTION_NAMES)),
        ("magics.md", list(OPTION_NAMES)),
        ("sweeps.md", parameters(kn.Pool.map, set())),
        ("sweeps.md", parameters(kn.Pool.sweep, set())),
        ("models.md", parameters(kn.Pool.load, set())),
        ("models.md", parameters(read_sampling, {"eos"})),
    ],
)
def test_every_option_is_on_its_page(page: str, options: list[str]) -> None:
    assert len(options) > 5
    text = expanded(page)
    assert not [option for option in options if not says(text, option)]


def test_the_snapshot_page_has_every_key() -> None:
    text = (DOCS / "snapshot.md").read_text()
    assert not [key for key in Snapshot("lab", 0.0).to_dict() if f"`{key}`" not in text]
