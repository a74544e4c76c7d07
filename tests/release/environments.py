"""Environments that know nothing of the checkout: made for one check, and gone after it."""

from __future__ import annotations

import os
import subprocess
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Environment:
    """A virtual environment. ``prefix`` is its folder; Jupyter's folders of this user are not those it looks in."""

    def __init__(self, prefix: Path) -> None:
        venv.create(prefix, with_pip=True)
        self.prefix, self.bin = prefix, prefix / "bin"
        self.python = str(self.bin / "python")
        # what a developer has set says nothing of what others have
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JUPYTER_"))}
        self.variables = {
            **kept,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(prefix),
            "CUDA_VISIBLE_DEVICES": "",
            "KALAVAI_HOME": str(prefix.with_name(f"{prefix.name}-home")),
        }
        for kind in ("CONFIG", "DATA", "RUNTIME"):
            self.variables[f"JUPYTER_{kind}_DIR"] = str(prefix.with_name(f"{prefix.name}-jupyter") / kind.lower())

    def run(self, *command: str | Path, cwd: Path, path: Path | None = None, **more: str) -> None:
        """A command that has to succeed; what it says goes where this process's own words go."""
        subprocess.run(command, cwd=cwd, env=self._variables(path, more), check=True)

    def says(
        self, *command: str | Path, cwd: Path, path: Path | None = None, given: str | None = None, **more: str
    ) -> str:
        """What a command prints, errors too, to what it is ``given``; where it fails, that is shown."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self._variables(path, more),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def pip(self, *arguments: str | Path, cwd: Path, path: Path | None = None, **more: str) -> str:
        """What pip says; ``path`` is all of PATH, to show that nothing else is needed."""
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", **more}
        return self.says(self.python, "-m", "pip", *arguments, cwd=cwd, path=path, **quiet)

    def files(self) -> set[str]:
        """All files of the environment, but for what Python compiles on the way."""
        found = (path for path in self.prefix.rglob("*") if "__pycache__" not in path.parts)
        return {path.relative_to(self.prefix).as_posix() for path in found if path.is_symlink() or not path.is_dir()}

    def _variables(self, path: Path | None, more: dict[str, str]) -> dict[str, str]:
        return {**self.variables, **({"PATH": str(path)} if path else {}), **more}


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"{what} …", flush=True)
    began = time.monotonic()
    yield
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def clone(into: Path) -> str:
    """What strangers get of the last commit, and its name."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, into], check=True)
    return subprocess.check_output(["git", "log", "-1", "--format=%h %s"], cwd=into, text=True).strip()
