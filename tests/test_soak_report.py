"""A soak whose notebook answers no more still says what was seen until then."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from soak import mixed


class Notebook:
    """One that has stopped answering."""

    pid = os.getpid()

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: object) -> None: ...

    def interrupt(self) -> None: ...

    def run(self, source: str, seconds: float) -> None:
        raise TimeoutError("the cell did not get there")


def test_it_gives_up_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "Notebook", Notebook)
    monkeypatch.setattr(mixed, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(mixed, "tiny_lm", lambda path, **_: path)
    monkeypatch.setattr(mixed.Bench, "open", lambda _: None)
    monkeypatch.setattr(mixed.Bench, "head", lambda _: SimpleNamespace(pid=os.getpid()))
    monkeypatch.setattr(mixed, "ACTIONS", {"look": (lambda bench: bench.run("pool"), 1)})
    place = tmp_path / "place"
    place.mkdir()
    soak, rows = mixed.run(place, 1.0, 1)
    assert mixed.report(soak, rows, tmp_path / "soak.json", 1.0, 1) == 1
    said = json.loads((tmp_path / "soak.json").read_text())
    assert said["counts"] == {"look": 1}
    assert "look: TimeoutError: the cell did not get there" in said["troubles"][0]
    assert "given up: TimeoutError: the cell did not get there" in said["troubles"][1]
