"""Where a worker's files lie: sockets among them, whose paths may not be long."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kalavai_nb.places import alone
from kalavai_nb.security import Authority
from kalavai_nb.worker import scratch
from kalavai_nb.worker.child import Child
from kalavai_nb.worker.quarters import Quarters
from kalavai_nb.worker.ranks import RankProcess
from kalavai_nb.worker.scratch import LONGEST_PARENT, Scratch

LONGEST_PATH = 107
LONGEST_UID = "4294967294"


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The longest directory for temporary files that is used."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as short:
        parent = Path(short) / ("é" * ((LONGEST_PARENT - len(short) - 1) // 2))
        parent.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(parent))
        yield parent


def test_a_ranks_sockets_have_a_path_that_is_short_enough(longest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Child, "__init__", lambda *_: None)
    place = Scratch(Authority("lab").issue("head", listens=True).pool_id, ["GPU-0"])
    try:
        assert place.directory.is_relative_to(longest)
        quarters = Quarters(place.directory)
        rank = RankProcess(quarters.directory, {}, "lease", "owner")
        path = os.fsencode(rank._directory / "ipc-5")
        wider = len(path) + len(LONGEST_UID) - len(str(os.getuid()))
        assert wider <= LONGEST_PATH
        assert wider >= LONGEST_PATH - 2, "no shorter than it has to be"
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(path)
        quarters.close()
    finally:
        place.close()
    assert [each.name for each in longest.iterdir()] == [f"{scratch.PREFIX}{os.getuid()}.lock"]


def test_bytes_are_counted_and_not_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "é" * (LONGEST_PARENT // 2))
    assert scratch._parent() == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", "/" + "é" * (LONGEST_PARENT // 2 - 1))
    assert scratch._parent() == Path(tempfile.tempdir)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic links"), alone(tmp_path / "lock"):
        pass
    assert not (tmp_path / "theirs").exists()
