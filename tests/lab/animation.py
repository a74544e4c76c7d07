"""A moving picture of a notebook that uses a pool, with the sidebar beside it: a real pool, on GPUs of a stub."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from PIL import Image
from playwright.sync_api import Page, expect

from lab import Front
from nvml import change

VIEWPORT = {"width": 1180, "height": 740}
SCALE = 1.5
# where the machine was slow it is played faster
MOST_SECONDS = 11.5
PATIENCE_SECONDS = 60.0
# frames that are alike become one, so this is how fast it may move
FRAMES_PER_SECOND = 6
HOLD_MILLISECONDS = 2200
# a history to look at; the head keeps it in bins of ten seconds
WARM_SECONDS = 90
SETTLE_SECONDS = 4
WIDER_PIXELS = 80
GPUS = 4
CELLS = (
    "%load_ext kalavai_nb\nimport kalavai_nb as kn\nfrom digits import run_epoch, train\npool = kn.Pool()",
    '%%pool gpus=4\nprint(f"rank {rank} of {world_size} on {device}")\nfor epoch in range(1, 5):\n'
    '    print(f"epoch {epoch}: loss {run_epoch(epoch):.3f}")',
    'configs = [{"lr": 0.1 / 2**n} for n in range(12)]\n'
    'sweep = pool.map(train, configs, metric="loss", name="rates")\nsweep.wait()',
)
# what the cells above call, from a module beside the notebook: the GPUs are not there, so it only takes its time
MODULE = '''"""Stands for a training."""

import math
import random
import time

import kalavai_nb.outputs as outputs

# ranks on a machine that is busy with taking pictures
outputs.PATIENCE_SECONDS, outputs.LOCKSTEP_SECONDS = 0.5, 1.5


def run_epoch(epoch):
    time.sleep(0.45)
    return 2.3 / epoch**0.7


def train(config, trial):
    chance, loss = random.Random(str(config)), 2.3
    away = abs(math.log10(config["lr"]) + 2.2)
    for step in range(9):
        time.sleep(0.1 + 0.05 * chance.random())
        loss = 2.3 * math.exp(-step / (3 + away)) + 0.1 * away + 0.12 * chance.random()
        trial.report(step, loss=loss)
    return {"loss": loss}
'''


class Load:
    """How busy the GPUs are: as the pool's, which the stub knows nothing of."""

    def __init__(self, stub: Path) -> None:
        self._stub = stub
        self._levels = [0.0] * GPUS

    def step(self, busy: bool) -> None:
        """A second later."""
        settings = {}
        for gpu in range(GPUS):
            wanted = 0.86 + 0.12 * math.sin(2.1 * gpu + time.monotonic() / 3) if busy else 0.0
            self._levels[gpu] += 0.7 * (wanted - self._levels[gpu])
            level = self._levels[gpu]
            settings |= {
                f"gpu{gpu}.utilisation": round(100 * level),
                f"gpu{gpu}.temperature": round(41 + 27 * level),
                f"gpu{gpu}.power_mw": round(28_000 + 370_000 * level),
                f"gpu{gpu}.memory_used_mb": round(900 + (13_000 + 1900 * gpu) * min(1, 2 * level)),
            }
        change(self._stub, **settings)


class Recorder:
    """Frames of a page, each with how long it is to be seen."""

    def __init__(self, page: Page, on_second: Callable[[], None]) -> None:
        self._page, self._on_second = page, on_second
        self.frames: list[bytes] = []
        # the one that stands for all
        self.still = b""
        self._times: list[float] = []
        self._second = 0.0

    def until(self, ready: Callable[[], bool], *, most: float) -> None:
        started = time.monotonic()
        while not ready():
            assert time.monotonic() - started < most, "what is shown takes too long"
            self.take()

    def take(self) -> None:
        now = time.monotonic()
        if now - self._second >= 1:
            self._second = now
            self._on_second()
        self._times.append(now)
        self.frames.append(self._page.screenshot(caret="hide", animations="allow"))
        self._page.wait_for_timeout(max(1.0, 1000 * (now + 1 / FRAMES_PER_SECOND - time.monotonic())))

    def save(self, file: Path) -> None:
        """As an animation that begins again."""
        ends = [*self._times[1:], self._times[-1] + HOLD_MILLISECONDS / 1000]
        faster = max(1.0, (ends[-1] - self._times[0]) / MOST_SECONDS)
        images, milliseconds = [], []
        for frame, begin, end in zip(self.frames, self._times, ends, strict=True):
            image = Image.open(io.BytesIO(frame)).convert("RGB")
            seen = round(1000 * (end - begin) / faster)
            if images and image.tobytes() == images[-1].tobytes():
                milliseconds[-1] += seen
            else:
                images.append(image)
                milliseconds.append(seen)
        first, *rest = images
        first.save(
            file, save_all=True, append_images=rest, duration=milliseconds, loop=0, lossless=True, quality=60, method=4
        )
        kilobytes, seconds = file.stat().st_size / 1000, sum(milliseconds) / 1000
        print(f"{file}: {first.width}x{first.height}, {kilobytes:.0f} kB, {len(images)} frames in {seconds:.1f} s")
        if faster > 1:
            print(f"played {faster:.2f} times as fast as it was")


def prepare(work: Path) -> str:
    """The notebook and its module in a folder of their own; its path."""
    work.mkdir()
    (work / "digits.py").write_text(MODULE)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "training.ipynb")
    return f"{work.name}/training.ipynb"


def play(front: Front, stub: Path) -> Recorder:
    """Run the cells while it is recorded, after the pool was used for a while."""
    page, load = front.page, Load(stub)
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    front.wait_for_kernel()
    cells = page.locator(".jp-CodeCell")

    def is_idle() -> bool:
        return idle.count() == 1 and "*" not in "".join(page.locator(".jp-InputPrompt").all_inner_texts())

    def run(number: int) -> None:
        cells.nth(number).locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")

    # where it comes before the notebook it stays
    for launcher in page.locator(".lm-DockPanel .lm-TabBar-tab:has-text('Launcher') .lm-TabBar-tabCloseIcon").all():
        launcher.click()
    widen(front)
    load.step(False)
    run(0)
    expect(front.sidebar.locator(".kn-device")).to_have_count(GPUS, timeout=60_000)
    # ranks have begun, and all that follows is quick
    warm(page, load, is_idle, run)
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_role("menuitem", name="Clear Cell Output", exact=True).click()
    for _ in range(SETTLE_SECONDS):
        load.step(False)
        page.wait_for_timeout(1000)
    recorder = Recorder(page, lambda: load.step(not is_idle()))
    cells.nth(1).locator(".jp-InputArea-editor").click()
    for _ in range(3):
        recorder.take()
    for number in (1, 2):
        run(number)
        recorder.take()
        begun = len(recorder.frames)
        recorder.until(is_idle, most=PATIENCE_SECONDS)
        # of a sweep that is more than half done
        recorder.still = recorder.frames[begun + 2 * (len(recorder.frames) - begun) // 3]
    for _ in range(5):
        recorder.take()
    return recorder


def widen(front: Front) -> None:
    """Pull the sidebar's edge, here its right one."""
    box = front.sidebar.bounding_box()
    assert box
    x, y = box["x"] + box["width"] + 2, box["y"] + 200
    front.page.mouse.move(x, y)
    front.page.mouse.down()
    front.page.mouse.move(x + WIDER_PIXELS, y, steps=5)
    front.page.mouse.up()


def warm(page: Page, load: Load, is_idle: Callable[[], bool], run: Callable[[int], None]) -> None:
    """Use the pool, now and then."""
    started, second = time.monotonic(), 0
    while time.monotonic() - started < WARM_SECONDS or not is_idle():
        second += 1
        if is_idle() and second % 6 == 0:
            run(1)
        load.step(not is_idle())
        page.wait_for_timeout(1000)
