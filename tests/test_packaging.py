"""What people install: all that JupyterLab and Jupyter Server look for, and nothing that they have already."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SHARE = "share/jupyter/labextensions/kalavai_nb"
BUNDLE_LIMIT_BYTES = 60_000
BUNDLED = {"preact", "css-loader", "style-loader"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist of the checkout."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def installed(dist: Path) -> dict[str, bytes]:
    """Files of the wheel by where they go: packages as they are, shared data under the prefix of the environment."""
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {re.sub(r"^kalavai_nb-[^/]+\.data/data/", "", name): archive.read(name) for name in names}


@pytest.fixture(scope="module")
def source(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    [sdist] = dist.glob("*.tar.gz")
    directory = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    [top] = directory.iterdir()
    return top


def test_the_wheel_holds_what_enables_both_extensions(installed: dict[str, bytes]) -> None:
    package = json.loads(installed[f"{SHARE}/package.json"])
    entry = package["jupyterlab"]["_build"]["load"]
    assert f"{SHARE}/{entry}" in installed
    assert package["jupyterlab"]["_build"]["extension"] == "./extension"
    assert json.loads(installed[f"{SHARE}/install.json"])["packageName"] == "kalavai-nb"
    assert f"{SHARE}/schemas/kalavai_nb/plugin.json" in installed
    server = json.loads(installed["etc/jupyter/jupyter_server_config.d/kalavai_nb.json"])
    assert server["ServerApp"]["jpserver_extensions"] == {"kalavai_nb": True}
    assert installed["kalavai_nb/panel/static/panel.js"]
    assert installed["kalavai_nb/panel/static/panel.css"]


def test_the_wheel_holds_no_sources_tests_or_maps(installed: dict[str, bytes]) -> None:
    unwanted = re.compile(r"\.(tsx?|map|lock)$|(^|/)(tests|node_modules|labextension)/|^kalavai_nb/labextension")
    assert [name for name in installed if unwanted.search(name)] == []


@pytest.mark.parametrize("part", [f"{SHARE}/static/", "kalavai_nb/panel/static/"], ids=["sidebar", "panel"])
def test_the_bundle_is_small(installed: dict[str, bytes], part: str) -> None:
    sizes = {name: len(gzip.compress(data)) for name, data in installed.items() if name.startswith(part)}
    scripts = {name: size for name, size in sizes.items() if name.endswith((".js", ".css"))}
    assert 0 < sum(scripts.values()) <= BUNDLE_LIMIT_BYTES, scripts


def test_nothing_that_jupyterlab_has_is_bundled(installed: dict[str, bytes]) -> None:
    licenses = json.loads(installed[f"{SHARE}/static/third-party-licenses.json"])
    assert {package["name"] for package in licenses["packages"]} == BUNDLED


def test_versions_are_the_same(installed: dict[str, bytes]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert json.loads((ROOT / "labextension/package.json").read_text())["version"] == version
    assert f"kalavai_nb-{version}.dist-info/METADATA" in installed


def test_the_lock_names_no_server() -> None:
    for name in ("yarn.lock", ".yarnrc.yml", "package.json"):
        assert not re.search(r"https?://|npmRegistry", (ROOT / "labextension" / name).read_text()), name


def test_shared_packages_are_those_that_are_imported() -> None:
    """One that is not shared would be looked for in our own files, and not be there."""
    package = json.loads((ROOT / "labextension/package.json").read_text())
    sources = "\n".join(path.read_text() for path in (ROOT / "labextension/src").rglob("*.ts*"))
    imported = set(re.findall(r"from '(@(?:jupyterlab|lumino)/[^']+)'", sources))
    assert set(package["dependencies"]) == set(package["jupyterlab"]["sharedPackages"]) == imported
    for name, options in package["jupyterlab"]["sharedPackages"].items():
        assert options == {"bundled": False, "singleton": True, "requiredVersion": package["dependencies"][name]}


def test_an_sdist_installs_without_node(source: Path, installed: dict[str, bytes], tmp_path: Path) -> None:
    asked = "import hatchling.build as b; print(b.get_requires_for_build_wheel())"
    assert subprocess.check_output([sys.executable, "-c", asked], cwd=source, text=True).strip() == "[]"

    nothing = tmp_path / "bin"
    nothing.mkdir()
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(tmp_path / "site"), str(source)]
    environment = {**os.environ, "PATH": str(nothing)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    found = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    shared = {name: data for name, data in installed.items() if name.startswith(("share/", "etc/"))}
    panel = {name: data for name, data in installed.items() if name.startswith("kalavai_nb/panel/static/")}
    assert shared.items() | panel.items() <= found.items()


def test_an_sdist_holds_what_it_takes_to_build_again(source: Path) -> None:
    hook = _hook(source)
    for name in (*hook.SOURCES, "tests", "tsconfig.tests.json"):
        there = ROOT / "labextension" / name
        files = [path for path in there.rglob("*") if path.is_file()] if there.is_dir() else [there]
        assert [path for path in files if not (source / path.relative_to(ROOT)).is_file()] == []
    assert {path.name for path in (source / "labextension").iterdir() if path.is_dir()} == {
        "schema",
        "src",
        "style",
        "tests",
    }


def _hook(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", source / "labextension" / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "changed",
    ["labextension/src/index.ts", "labextension/style/index.css", "labextension/yarn.lock"],
)
def test_what_was_built_from_other_sources_is_built_again(source: Path, tmp_path: Path, changed: str) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    assert _hook(copy).is_current()
    with (copy / changed).open("a") as file:
        file.write("\n")
    assert not _hook(copy).is_current()


def test_what_was_built_in_part_is_built_again(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    (copy / "kalavai_nb/panel/static/panel.css").unlink()
    assert not _hook(copy).is_current()
