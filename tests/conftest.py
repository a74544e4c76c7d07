"""Fixtures: real kernels with real embedded pools, on CPU stand-ins whatever the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebook import Notebook

# the tests count on four stand-ins; those marked gpu see the real devices
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# on a busy machine, ranks may say the same line further apart than people would wait for it
PATIENT = "import kalavai_nb.outputs as outputs\noutputs.PATIENCE_SECONDS = outputs.LOCKSTEP_SECONDS = 1.5\ndel outputs"


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel of its own for tests that break things."""
    with Notebook(cwd=str(tmp_path)) as notebook:
        notebook.ok(f"%load_ext kalavai_nb\n{PATIENT}")
        yield notebook


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """A kernel with an open pool for all tests of a module that leave it as it was."""
    with Notebook(cwd=str(tmp_path_factory.mktemp("notebook"))) as notebook:
        notebook.ok(f"%load_ext kalavai_nb\n{PATIENT}\nimport kalavai_nb as kn\npool = kn.Pool(quiet=True)")
        yield notebook
