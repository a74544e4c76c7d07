"""IPython in a plain terminal, as it is on the screen: typed at, interrupted by Ctrl-C, and left."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pyte
import pytest

# so high that nothing leaves it, so that all there is can be read
ROWS, COLUMNS = 200, 120
PATIENCE_SECONDS = 60.0
STOP_SECONDS = 5.0
CTRL_C, CTRL_D = "\x03", "\x04"
PASTE, PASTED, RUN = "\x1b[200~", "\x1b[201~", "\x1b\r"
OPEN = "import kalavai_nb as kn\npool = kn.Pool(devices=2, quiet=True)\npool"
STUCK = "%%pool\nimport time\nkept = rank + 7\nprint('began')\ntime.sleep(600)"
BARS = "%%pool\nfrom tqdm.auto import tqdm\nfor _ in tqdm(range(10)):\n    time.sleep(0.05)"
SWEEP = """def slow(config):
    import time
    time.sleep(0.6)
    return config

pool.map(slow, range(6)).wait()"""
LATER = "later = pool.map(slow, [1, 2])\nprint('typed on')"


class Terminal:
    """A terminal with IPython in it."""

    def __init__(self, folder: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.Stream(self.screen)
        env = {**os.environ, "IPYTHONDIR": str(folder / "ipython"), "TERM": "xterm-256color"}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--no-banner", "--no-confirm-exit", "--colors=NoColor"],
            cwd=str(folder),
            env=env,
            encoding="utf-8",
            dimensions=(ROWS, COLUMNS),
        )
        # the prompt asks where the cursor is
        self.screen.write_process_input = self.child.send
        self.seen: set[str] = set()

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait_for(self, pattern: str) -> None:
        """Until this is to be seen."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(pattern, self.text, re.MULTILINE):
            assert time.monotonic() < deadline, self.text
            try:
                self._stream.feed(self.child.read_nonblocking(65536, 0.2))
            except pexpect.TIMEOUT:
                continue
            self.seen.update(self.text.splitlines())

    def begin(self, cell: str, number: int) -> None:
        self.wait_for(rf"^In \[{number}\]:$")
        self.child.send(f"{PASTE}{cell}{PASTED}{RUN}")

    def run(self, cell: str, number: int) -> str:
        """What there is between this cell and the next prompt."""
        self.begin(cell, number)
        return self.finish(number)

    def finish(self, number: int) -> str:
        self.wait_for(rf"^In \[{number + 1}\]:$")
        _, _, rest = self.text.partition(f"In [{number}]:")
        return rest.partition(f"\nIn [{number + 1}]:")[0]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.child.close(force=True)


def test_it_is_at_home_in_a_terminal(terminal: Terminal) -> None:
    terminal.run("%load_ext kalavai_nb", 1)
    assert re.search(r"^0 +\S+ cpu:0 +", terminal.run(OPEN, 2), re.MULTILINE), "the pool is a table"
    # equal lines of ranks that said nothing before may come at different times
    assert "[0] rank 0 of 2" in terminal.run('%%pool\nprint(f"rank {rank} of {world_size}")', 3)

    terminal.begin(STUCK, 4)
    terminal.wait_for(r"^\[(0-)?1\] began$")
    started = time.monotonic()
    terminal.child.send(CTRL_C)
    stopped = terminal.finish(4)
    took = time.monotonic() - started
    print(f"\nCtrl-C in a terminal to the next prompt: {took:.2f} s")
    assert "KeyboardInterrupt: the cell was stopped on all its ranks." in stopped
    assert "Traceback" not in stopped
    assert took <= STOP_SECONDS
    clean = terminal.run("%%pool\nkept", 5)
    assert "[0] 7" in clean and "[1] 8" in clean, clean  # noqa: PT018

    bars = [line for line in terminal.run(BARS, 6).splitlines() if "%|" in line]
    assert len(bars) == 2, bars
    assert all("10/10" in line for line in bars), "they show how they ended"

    sweep = terminal.run(SWEEP, 7)
    heads = [line for line in sweep.splitlines() if "/6:" in line]
    assert [re.search(r"\d/6", line)[0] for line in heads] == ["0/6", "6/6"], sweep
    assert any(re.search(r"[1-5]/6: .*\d running", line) for line in terminal.seen), "meanwhile it was drawn over"
    assert "Out[7]: <Sweep 'slow-1' of slow, 6 trials: 6 complete>" in sweep

    # while a person types, only what became of it is said
    terminal.begin(LATER, 8)
    terminal.wait_for(r"2/2: 2 complete")
    later = terminal.run("later.values", 9)
    assert "Out[9]: [1, 2]" in later
    assert terminal.text.count("/2: ") == 2, terminal.text

    assert not re.search(r"\w\(value=|<IPython|<div|\x1b|\?\[", terminal.text), "no garbage"
    pool = psutil.Process(terminal.child.pid).children(recursive=True)
    assert pool
    terminal.child.send(CTRL_D)
    terminal.child.expect(pexpect.EOF, timeout=PATIENCE_SECONDS)
    _, alive = psutil.wait_procs(pool, PATIENCE_SECONDS)
    assert alive == []
