"""What would be published, as strangers get it: built from a clone, looked at, installed without node, used, removed.

    python tests/release/check.py [FOLDER]

FOLDER (dist/) keeps the wheel and the sdist, for an upload of just what was checked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from environments import ROOT, Environment, clone, step

LABEXTENSION = "share/jupyter/labextensions/kalavai_nb"
ENDINGS = (".whl", ".tar.gz")
# two empty lines end a cell with a magic
CELL = """%load_ext kalavai_nb
%%pool gpus=2
print(f"rank {rank} of {world_size} on {device}")


exit
"""
# what a user writes, and what a type checker has to make of what we export
TYPED = ("examples/typed.py", "tests/release/typed_api.py")


def build(repository: Path, into: Path) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist, built from what git has; each in an environment of its own."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", into, repository], check=True, stdout=subprocess.DEVNULL)
    [wheel], [sdist] = into.glob("*.whl"), into.glob("*.tar.gz")
    for file in (wheel, sdist):
        print(f"    {file.name}: {file.stat().st_size / 1000:.0f} kB")
    return wheel, sdist


def look_at(wheel: Path, sdist: Path) -> None:
    """What an index would refuse, and what should not be in a wheel."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True)
    subprocess.run([sys.executable, "-m", "check_wheel_contents", wheel], check=True)


def install(environment: Environment, what: Path, *options: str, cwd: Path) -> set[str]:
    """Install where there is no node, and no other program either; what is there then."""
    alone = environment.bin
    assert not any(shutil.which(tool, path=str(alone)) for tool in ("node", "npm"))
    environment.pip("install", *options, what, cwd=cwd, path=alone)
    return environment.files()


def use(environment: Environment, cwd: Path) -> None:
    """Import it, ask the command, list the extensions, run a cell in plain IPython; it leaves no process."""
    environment.pip("check", cwd=cwd)
    environment.run(environment.python, "-W", "error", "-c", "import kalavai_nb", cwd=cwd)
    assert "join" in environment.says("kalavai-nb", "--help", cwd=cwd)
    assert "usage" in environment.says(environment.python, "-m", "kalavai_nb", "--help", cwd=cwd)
    for kind in ("labextension", "server extension"):
        listed = environment.says("jupyter", *kind.split(), "list", cwd=cwd).splitlines()
        assert any("kalavai_nb" in line and "OK" in line for line in listed), listed
    said = environment.says("ipython", "--simple-prompt", "--no-banner", cwd=cwd, given=CELL)
    for rank in (0, 1):
        assert f"rank {rank} of 2 on cpu" in said, said


def check_types(environment: Environment, repository: Path, cwd: Path) -> None:
    """A user's script is typed all the way, by the package as it is installed; and it runs."""
    files = [shutil.copy(repository / file, cwd) for file in TYPED]
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={environment.python}"]
    environment.run(*mypy, f"--cache-dir={cwd / 'mypy'}", *files, cwd=cwd, MYPYPATH="")
    assert "best of 4" in environment.says(environment.python, "-W", "error", files[0], cwd=cwd)


def remove(environment: Environment, there: set[str], cwd: Path) -> None:
    """Uninstalling takes away what installing brought, and using it has left nothing beside that."""
    environment.pip("uninstall", "--yes", "kalavai-nb", cwd=cwd)
    left = environment.files()
    assert left <= there, f"files that appeared meanwhile: {sorted(left - there)}"
    assert not [name for name in left if "kalavai" in name], "files of ours are left"
    print(f"    {len(there - left)} files went, {len(left)} of other packages stay")


def check_replaceable(folder: Path) -> None:
    """Raise SystemExit where this folder has anything else than wheels and sdists: it will be removed."""
    if not folder.exists():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise SystemExit(f"{folder} is no folder; say one for the wheel and the sdist.")
    others = [each.name for each in folder.iterdir() if not each.is_file() or not each.name.endswith(ENDINGS)]
    if others:
        raise SystemExit(
            f"{folder} is to be replaced by what was checked, but has more than wheels and sdists: "
            f"{', '.join(sorted(others)[:5])}. Say another folder, or empty it."
        )


def main() -> None:
    """All of it, in a folder that is removed."""
    kept = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"
    check_replaceable(kept)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        print(f"what would be published of: {clone(place / 'repository')}")
        with step("build"):
            wheel, sdist = build(place / "repository", place / "dist")
        with step("look at it"):
            look_at(wheel, sdist)
        environment = Environment(place / "environment")
        with step("an empty environment, with a torch only"):
            [torch] = [line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch==")]
            environment.pip("install", torch, cwd=place)
        with step("the wheel, without node"):
            there = install(environment, wheel, cwd=place)
        with step("use it"):
            use(environment, place)
        with step("its types"):
            check_types(environment, place / "repository", place)
        with step("remove it"):
            remove(environment, there, place)
        with step("the sdist, without node"):
            there = install(environment, sdist, "--no-deps", cwd=place)
            assert any(file.startswith(f"{LABEXTENSION}/static/remoteEntry") for file in there), "no labextension"
        with step("use it"):
            use(environment, place)
        with step("remove it"):
            remove(environment, there, place)
        # that was minutes ago
        check_replaceable(kept)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(place / "dist", kept)
        print(f"{kept.name}/ has what was checked")


if __name__ == "__main__":
    main()
