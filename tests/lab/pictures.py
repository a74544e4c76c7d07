"""Takes the pictures of the README, of a real JupyterLab with pools that are not there: GPUs of a stub of their driver,
and snapshots of tests/lab/synthetic.py.

python tests/lab/pictures.py [folder [name …]]      docs/ and all by default; names: sidebar, empty, panel, pool
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

sys.path.insert(0, str(Path(__file__).parents[1]))

from animation import SCALE, VIEWPORT, play, prepare
from lab import Front, Lab, chromium
from nvml import build_stub, change, environment
from synthetic import Published, busy

NAMES = ("sidebar", "empty", "panel", "pool")
MOST_BYTES, MOST_BYTES_OF_A_PAGE = 60_000, 200_000
COLOURS = 256
WIDER_PIXELS = 90
CODE = (
    "import kalavai_nb as kn\n\npool = kn.Pool(quiet=True)\npool",
    "def train(lr):\n    import time\n    time.sleep(3 if lr > 0.05 else 600)\n\n"
    "sweep = pool.map(train, [0.3, 0.1, 0.06, 0.03, 0.01, 0.003, 0.001], name='lr', show=False)",
)
GPUS: dict[str, Any] = {
    "count": 4,
    "name": "NVIDIA GeForce RTX 4090",
    "memory_total_mb": 24564,
    "power_limit_mw": 450_000,
}
for number, percent in enumerate((97, 88, 64, 91)):
    GPUS |= {
        f"gpu{number}.utilisation": percent,
        f"gpu{number}.temperature": 38 + percent // 3,
        f"gpu{number}.power_mw": 30_000 + 3700 * percent,
        f"gpu{number}.memory_used_mb": 600 + 190 * percent,
    }


def main(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        stub = build_stub(Path(place) / "nvml")
        # for the server, and so for its kernels
        os.environ.update(environment(stub, **GPUS))
        lab = Lab(Path(place) / "lab")
        try:
            for theme in ("dark", "light"):
                lab.set("@jupyterlab/apputils-extension", "themes", theme=f"JupyterLab {theme.capitalize()}")
                if "sidebar" in names:
                    with Published(lab.runtime, lambda second: busy(second + 160)):
                        sidebar(browser, lab, folder / f"sidebar-{theme}.png")
                if "pool" in names:
                    pool(browser, lab, folder, theme, stub)
            if "empty" in names:
                empty(browser, lab, folder / "empty.png")
            if "panel" in names:
                panel(browser, lab, folder / "panel.png", stub)
        finally:
            lab.stop()


def sidebar(browser: Browser, lab: Lab, file: Path) -> None:
    front = Front(browser, lab, viewport={"width": 1280, "height": 1140})
    front.open_sidebar()
    expect(front.sidebar.locator(".kn-device")).to_have_count(6)
    widen(front)
    front.page.wait_for_timeout(1500)
    save(front.sidebar, file)
    front.close()


def widen(front: Front) -> None:
    """Pull the sidebar's edge, as people do it."""
    box = front.sidebar.bounding_box()
    assert box
    x, y = box["x"] - 2, box["y"] + 200
    front.page.mouse.move(x, y)
    front.page.mouse.down()
    front.page.mouse.move(x - WIDER_PIXELS, y, steps=5)
    front.page.mouse.up()


def empty(browser: Browser, lab: Lab, file: Path) -> None:
    front = Front(browser, lab, viewport={"width": 1000, "height": 440})
    front.open_sidebar()
    expect(front.sidebar).to_contain_text("No pool yet")
    widen(front)
    save(front.sidebar, file)
    front.close()


def panel(browser: Browser, lab: Lab, file: Path, stub: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in CODE]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab.work / "training.ipynb")
    front = Front(browser, lab, path="lab/tree/training.ipynb", viewport={"width": 1000, "height": 900})
    expect(front.page.get_by_text("| Idle")).to_be_visible(timeout=60_000)
    front.page.locator(".jp-CodeCell").first.click()
    front.page.keyboard.press("Shift+Enter")
    shown = front.page.locator(".kn-panel")
    expect(shown.locator(".kn-device")).to_have_count(4, timeout=60_000)
    front.page.keyboard.press("Shift+Enter")
    expect(shown.locator(".kn-item").first).to_contain_text("running")
    for step in range(9):  # for a history to look at
        change(stub, **{f"gpu{n}.utilisation": 98 - 30 * ((step + n) % 3 == 0) for n in range(4)})
        front.page.wait_for_timeout(10_000)
    save(shown.locator(".kn-view"), file)
    front.close()


def pool(browser: Browser, lab: Lab, folder: Path, theme: str, stub: Path) -> None:
    """The moving picture of this theme, and a still one of it."""
    lab.set("kalavai_nb", "plugin", side="left")
    path = prepare(lab.work / theme)
    front = Front(browser, lab, path=f"lab/tree/{path}", viewport=VIEWPORT, device_scale_factor=SCALE)
    front.open_sidebar()
    recorder = play(front, stub)
    lab.end_kernels(front.page)
    front.close()
    lab.set("kalavai_nb", "plugin")
    recorder.save(folder / f"pool-{theme}.webp")
    (folder / f"pool-{theme}.png").write_bytes(recorder.still)
    shrink(folder / f"pool-{theme}.png", MOST_BYTES_OF_A_PAGE)


def save(what: Locator, file: Path) -> None:
    what.screenshot(path=file)
    shrink(file, MOST_BYTES)


def shrink(file: Path, most_bytes: int) -> None:
    """With as few colours as make it small enough."""
    image = Image.open(file).convert("RGB")
    colours = COLOURS
    while True:
        image.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
        if file.stat().st_size <= most_bytes or colours <= 8:
            break
        colours //= 2
    print(f"{file}: {image.width}x{image.height}, {file.stat().st_size / 1000:.1f} kB, {colours} colours")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs", sys.argv[2:] or NAMES)
