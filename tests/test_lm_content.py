"""A machine that does not have a model's files gets the tensors of its own stages, and keeps them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import kalavai_nb as kn
from kalavai_nb.errors import ModelError
from kalavai_nb.weights.source import ModelSource
from tiny_lm import tiny_lm


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine on which the notebook's directories are not to be found."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("KALAVAI_CACHE", str(cache))
    plain = ModelSource.manifest
    monkeypatch.setattr(ModelSource, "manifest", lambda self: {**plain(self), "directory": "/not/on/this/machine"})
    return cache


def on_disk(cache: Path) -> int:
    """Bytes that the weights in it take; holes take none."""
    return sum(512 * file.stat().st_blocks for file in cache.rglob("*.safetensors"))


def test_each_stage_gets_its_own_tensors_once(tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_lm(tmp_path / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=8)
    whole = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    sent: list[int] = []
    read = ModelSource.read

    def counted(source: ModelSource, file: str, offset: int, length: int) -> bytes:
        sent.append(length)
        return read(source, file, offset, length)

    monkeypatch.setattr(ModelSource, "read", counted)
    with kn.Pool(devices=2, quiet=True) as pool:
        with pool.load(path, gpus=2, spares=0, show=False) as lm:
            made = lm.generate("hello", max_new_tokens=10)
        assert 0.9 * whole < sum(sent) < 1.1 * whole
        assert on_disk(elsewhere) < 1.2 * whole
        sent.clear()
        with pool.load(path, gpus=2, spares=0, show=False) as lm:
            assert lm.generate("hello", max_new_tokens=10) == made
        assert not sent


def test_one_stage_alone_takes_its_share(tmp_path: Path, elsewhere: Path) -> None:
    """A process for the first half of the layers has no byte of the second."""
    from kalavai_nb.weights.mirror import Mirror
    from kalavai_nb.worker.stage.model import StageModel, tensors_of

    path = tiny_lm(tmp_path / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=8)
    whole = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    source = ModelSource.resolve(path)
    mirror = Mirror(source.manifest())
    for file, offset, length in mirror.missing(tensors_of(mirror.directory, 0, 4)):
        mirror.write(file, offset, source.read(file, offset, length))
    mirror.commit()
    assert on_disk(elsewhere) < 0.6 * whole
    StageModel.load(mirror.directory, 0, 4)


def test_a_file_that_changes_while_it_is_sent_is_an_error(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*_: Any) -> bytes:
        raise ModelError("model.safetensors changed while it was in use. Load the model again.")

    monkeypatch.setattr(ModelSource, "read", changed)
    path = tiny_lm(tmp_path / "model")
    with kn.Pool(devices=1, quiet=True) as pool:
        with pytest.raises(ModelError, match=r"could not be loaded on .*changed while it was in use"):
            pool.load(path, show=False)
        # a message on its way to the head
        deadline = time.monotonic() + 10
        while pool.snapshot().leases:
            assert time.monotonic() < deadline
