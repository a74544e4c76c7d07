"""What CHANGELOG.md says of a release, for its page.

    python tests/release/notes.py v0.1.0

Fails where the tag is not the version that pyproject.toml has, or the changelog does not have it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def notes(tag: str, version: str, changelog: str) -> str:
    """The text under the heading of this release; SystemExit says why there is none."""
    if tag != f"v{version}":
        raise SystemExit(f"the tag of version {version} (pyproject.toml) is v{version}; got {tag}")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    found = [section for section in sections if re.match(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n", section)]
    if not found:
        raise SystemExit(f"CHANGELOG.md has no heading '## [{version}] - date'; [Unreleased] becomes it then")
    return found[0].partition("\n")[2].strip() + "\n"


def main() -> None:
    """Print them."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    print(notes(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text()), end="")


if __name__ == "__main__":
    main()
