"""What differs on a machine is told before it bites, and listed with the line that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kalavai_nb as kn
from kalavai_nb.doctor import Checkup, Doctor, Finding, compared, conditions_of, links_of
from kalavai_nb.state import Device, Link, machine_id

HERE = {
    "python": "3.11.7",
    "host": "desk",
    "executable": "/here/python",
    "pid": "1",
    "kalavai-nb": "0.1.0",
    "cloudpickle": "3.1.1",
    "numpy": "2.1.0",
    "torch": "2.13.0+cpu",
    "ipykernel": "7.1.0",
}
THERE = {**HERE, "host": "box", "executable": "/there/python", "pid": "2"}
WELL = {"clock": 1000.0, "ahead_seconds": 0.1, "expires": 1000.0 + 86400, "free_bytes": 1 << 40, "scratch": "/tmp"}


def found(used: tuple[str, ...] = (), **versions: str | None) -> list[Finding]:
    there = {name: version for name, version in {**THERE, **versions}.items() if version is not None}
    return list(compared(HERE, there, used))


def test_machines_that_agree_need_no_word() -> None:
    assert found() == []
    assert found(python="3.11.2") == []
    assert found(scipy="1.0") == [], "what only the machine has harms nobody"


def test_another_python_bites() -> None:
    [finding] = found(python="3.12.1")
    assert finding == Finding(
        "box",
        "Python 3.12.1 there, 3.11.7 here: functions and classes cannot be sent",
        "join with an environment of Python 3.11, as by `uv venv --python 3.11`",
        True,
    )


@pytest.mark.parametrize(
    ("versions", "bites"),
    [
        ({"cloudpickle": "2.2.0"}, True),
        ({"cloudpickle": "3.0.0"}, False),
        ({"numpy": "1.26.4"}, True),
        ({"numpy": "2.0.0"}, False),
        ({"torch": "2.4.0"}, False),
        ({"kalavai_nb": "0.1.0", "kalavai-nb": "0.2.0"}, True),
        ({"ipykernel": "7.2.0"}, False),
        ({"numpy": None}, True),
        ({"torch": None}, False),
    ],
)
def test_what_bites_and_what_only_differs(versions: dict[str, Any], bites: bool) -> None:
    [finding] = found(used=("numpy", "sklearn"), **versions)
    assert finding.bites is bites


def test_the_fix_is_a_line_for_that_machine() -> None:
    [finding] = found(torch="2.4.0")
    assert finding.fix == "there: /there/python -m pip install 'torch==2.13.0'"
    assert finding.text == "torch 2.4.0 there, 2.13.0+cpu here: tensors can usually be sent"


def test_a_machine_that_says_nothing_is_too_old() -> None:
    assert next(iter(compared(HERE, {"host": "box"}, ()))).fix == "update kalavai-nb there"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ({}, "does not answer"),
        ({**WELL, "ahead_seconds": 7200.0}, "its clock is 7200 s ahead of that of the pool's head"),
        ({**WELL, "ahead_seconds": -3.2}, "its clock is 3 s behind that of the pool's head"),
        ({**WELL, "expires": 1000.0 + 3600}, "its certificate is good for 1.0 h more"),
        ({**WELL, "free_bytes": 1 << 30}, "1.0 GiB are free where files of trials and values go"),
    ],
)
def test_what_is_amiss_on_a_machine(condition: dict[str, Any], text: str) -> None:
    [finding] = conditions_of("box", condition)
    assert finding.text == text


def test_a_machine_that_is_well_is_not_named() -> None:
    assert list(conditions_of("box", WELL)) == []


def test_ways_that_are_slow_long_or_none() -> None:
    links = [
        Link("a", "b", True, "10.0.0.2", 0.001, 1e9),
        Link("b", "a", True, "10.0.0.1", 0.001, 1e6),
        Link("a", "c", False, "", 0.02),
        Link("c", "a", True, "10.0.0.1", 0.3, 1e9),
    ]
    texts = [finding.text for finding in links_of(links, {"a": "desk", "b": "box"})]
    assert texts == [
        "the way to desk is slow: 1.0 MB/s",
        "cannot dial c: what goes there goes through the gate",
        "the way to desk is long: 300 ms there and back",
    ]


def test_findings_that_bite_come_first_in_the_table() -> None:
    checkup = Checkup((Finding("box", "a < b", "do <this>", True),), 2)
    assert repr(checkup).splitlines() == [
        "2 machines compared with this notebook: 1 finding",
        "machine  finding  what to do",
        "box      a < b    do <this>",
    ]
    assert "a &lt; b" in checkup._repr_html_()
    assert repr(Checkup((), 1)) == "1 machine compared with this notebook: all is well"


# with a pool


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(devices=1, quiet=True) as pool:
        yield pool


class Spoken:
    """An engine whose machines say other versions: all else is the pool's."""

    def __init__(self, pool: kn.Pool, **versions: str) -> None:
        self.engine, self.asked = pool.engine, 0
        [(self.machine, said)] = pool.engine.versions().items()
        self.said = {**said, "executable": "/there/python", **versions}

    def versions(self) -> dict[str, dict[str, str]]:
        self.asked += 1
        return {self.machine: self.said}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def test_an_embedded_pool_is_well(pool: kn.Pool) -> None:
    assert pool.engine.versions().keys() == pool.engine.conditions().keys() == {machine_id()}
    assert [finding for finding in pool.doctor().findings if "GiB are free" not in finding.text] == []


def test_what_bites_is_said_once_before_the_first_use(pool: kn.Pool) -> None:
    engine, said = Spoken(pool, python="3.9.1"), list[str]()
    doctor = Doctor(engine, said.append)  # type: ignore[arg-type]
    for _ in range(2):
        doctor.before_use(pool.devices)
    assert len(said) == engine.asked == 1
    assert "functions and classes cannot be sent" in said[0]
    assert [finding.bites for finding in doctor.checkup().findings][:1] == [True]


def test_a_machine_of_which_nothing_has_to_be_feared_is_not_asked_for(pool: kn.Pool) -> None:
    engine, said = Spoken(pool, python="3.9.1"), list[str]()
    doctor = Doctor(engine, said.append, [machine_id()])  # type: ignore[arg-type]
    doctor.before_use(pool.devices)
    doctor.before_use([])
    assert (engine.asked, said) == (0, [])


def test_a_difference_that_does_not_bite_is_only_listed(pool: kn.Pool) -> None:
    engine, said = Spoken(pool, torch="2.4.0"), list[str]()
    doctor = Doctor(engine, said.append)  # type: ignore[arg-type]
    doctor.before_use([Device("x", 0, "cpu", "EPYC", "box", engine.machine, 1)])
    assert said == []
    assert any("torch 2.4.0 there" in finding.text for finding in doctor.checkup().findings)
