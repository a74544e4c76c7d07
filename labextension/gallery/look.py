"""Look at the gallery: a picture of each state in each look at each width, and what axe says against it.

python gallery/look.py <folder for pictures> [part of a picture's name, as in "busy-dark" or "-250"]

What an update costs is measured by tests/lab/test_view.py, on the same pages.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
THEMES = Path(sys.prefix) / "share/jupyter/lab/themes/@jupyterlab"
# JupyterLab's themes, and two pages without any
LOOKS = {
    "light": "theme-light-extension",
    "dark": "theme-dark-extension",
    "contrast": "theme-dark-high-contrast-extension",
    "plain": None,
    "plaindark": None,
}
STATES = ("empty", "idle", "busy", "crowd", "failing", "odd", "down", "many")
WIDTHS = (250, 320, 700, 1100)
MOST_PIXELS = 2600


@contextlib.contextmanager
def gallery() -> Iterator[str]:
    """The address of the gallery, built from the sources as they are."""
    with tempfile.TemporaryDirectory() as folder:
        esbuild = HERE.parent / "node_modules/esbuild/bin/esbuild"
        how = ["--bundle", "--jsx=automatic", "--jsx-import-source=preact", f"--outdir={folder}", "--log-level=warning"]
        node = Path(sys.executable).with_name("node")
        subprocess.run([node, esbuild, HERE / "gallery.ts", *how], check=True)
        shutil.copy(HERE / "index.html", folder)
        shutil.copytree(HERE.parent / "style", Path(folder) / "style")
        for look, theme in LOOKS.items():
            if theme and (THEMES / theme).is_dir():
                shutil.copy(THEMES / theme / "index.css", Path(folder) / f"{look}.css")
        handler = functools.partial(_Quiet, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def open_page(browser: Browser, address: str, state: str, look: str, width: int, **options: Any) -> Page:
    """The gallery with this state, as wide as said."""
    scheme = "light" if look in ("light", "plain") else "dark"
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page.on("pageerror", lambda error: print(f"  {state}: {error}"))
    page.goto(f"{address}?state={state}&look={look}")
    page.wait_for_selector(".kn-head")
    return page


def violations(page: Page) -> list[str]:
    """What axe says against it, with the first place of each."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:160]} {each['nodes'][0]['failureSummary']}" for each in found]


def main(folder: Path, part: str = "") -> int:
    """Take the pictures whose names contain this part; gives the number of violations."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{state}-{look}-{width}" for state in STATES for look in LOOKS for width in WIDTHS]
    bad = 0
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with gallery() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--disable-gpu", *root])
        for name in filter(lambda each: part in each, names):
            state, look, width = name.split("-")
            page = open_page(browser, address, state, look, int(width))
            for line in violations(page):
                bad += 1
                print(f"{name}: {line}")
            height = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": int(width), "height": min(int(height), MOST_PIXELS)})
            page.wait_for_timeout(400)  # for bars that are still on their way
            page.screenshot(path=folder / f"{name}.png")
            page.close()
        browser.close()
    print(f"{bad} violations")
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), *sys.argv[2:3])))
