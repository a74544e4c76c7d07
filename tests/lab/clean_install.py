"""The wheel in clean environments of the oldest and the newest JupyterLab: `pip install` alone enables both extensions,
and the quickstart runs there, in JupyterLab and in Notebook 7.

    python tests/lab/clean_install.py [VERSION …]          e.g. 4.2.*

Of what the package needs only that of the sidebar and the panel is installed, so that no environment gets a torch of
its own; kernels are those of the environment that this runs in.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser

from lab import Lab, chromium
from quickstart import JUPYTERLAB, NOTEBOOK_7, run_quickstart

ROOT = Path(__file__).parent.parent.parent
OLDEST, NEWEST = "4.2.*", ">=4.2"
# what shows the panel in notebooks
WIDGETS = ("anywidget>=0.11", "ipywidgets>=8.1")
PATIENCE_SECONDS = 60


def wheel(directory: Path) -> Path:
    """The wheel of the checkout."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], cwd=ROOT, check=True)
    [built] = directory.glob("*.whl")
    return built


class Environment:
    """A virtual environment with a JupyterLab and the wheel, and Jupyter folders of its own."""

    def __init__(self, directory: Path, lab: str, built: Path) -> None:
        venv.create(directory, with_pip=True)
        self.bin = directory / "bin"
        wanted = f"jupyterlab{lab}" if lab[0] in "<>=" else f"jupyterlab=={lab}"
        self.variables = {**os.environ, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        for kind in ("CONFIG", "DATA", "RUNTIME"):
            self.variables[f"JUPYTER_{kind}_DIR"] = str(directory / kind.lower())
        pip = [self.bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # of Notebook pip takes the one that goes with this JupyterLab
        subprocess.run([*pip, wanted, "notebook>=7.2", *WIDGETS], check=True)
        subprocess.run([*pip, "--no-deps", built], check=True)

    def says(self, *command: str) -> str:
        """What a command of the environment prints, errors too: Jupyter lists its extensions there."""
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return done.stdout

    def answers(self) -> dict[str, object]:
        """What the server extension says of the pools there are: none."""
        token = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [
                self.bin / "jupyter-lab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                f"--IdentityProvider.token={token}",
            ],
            env=self.variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr
            next(line for line in server.stderr if "is running at" in line)
            _wait_for(port)
            url = f"http://127.0.0.1:{port}/kalavai-nb/state"
            request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
                answer: dict[str, object] = json.load(response)
            return answer
        finally:
            server.terminate()
            server.communicate(timeout=PATIENCE_SECONDS)


def _wait_for(port: int) -> None:
    """It says that it runs before it listens."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def check(environment: Environment) -> str:
    """The version of JupyterLab that all is well in."""
    version = environment.says("jupyter-lab", "--version").strip()
    [line] = [each for each in environment.says("jupyter", "labextension", "list").splitlines() if "kalavai_nb" in each]
    assert "enabled" in line and "OK" in line and "(python, kalavai-nb)" in line, line  # noqa: PT018
    lines = environment.says("jupyter", "server", "extension", "list").splitlines()
    assert any("kalavai_nb" in each and "enabled" in each for each in lines), lines
    assert any("kalavai_nb" in each and "OK" in each for each in lines), lines
    answer = environment.answers()
    assert answer == {"version": 1, "pools": {}}, answer
    return version


def run(browser: Browser, environment: Environment, place: Path) -> Iterator[str]:
    """Run the quickstart in both front ends; says what was run."""
    lab = Lab(place, environment.bin / "python")
    try:
        for end, command in ((JUPYTERLAB, "jupyter-lab"), (NOTEBOOK_7, "jupyter-notebook")):
            lab.forget()
            started = time.monotonic()
            run_quickstart(browser, lab, end)
            version = environment.says(command, "--version").strip()
            yield f"{end.name} {version}: the quickstart ran, in {time.monotonic() - started:.0f} s"
    finally:
        lab.stop()


def main() -> None:
    """Each version in turn."""
    # the quickstart counts on four stand-ins
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        place = Path(folder)
        os.environ["KALAVAI_HOME"] = str(place / "kalavai")
        built = wheel(place / "dist")
        for number, lab in enumerate(sys.argv[1:] or [OLDEST, NEWEST]):
            environment = Environment(place / f"env{number}", lab, built)
            print(f"JupyterLab {check(environment)}: enabled, and answers", flush=True)
            for said in run(browser, environment, place / f"lab{number}"):
                print(said, flush=True)


if __name__ == "__main__":
    main()
