"""Run a notebook and show each cell's output as it comes, in a terminal.

python examples/run_notebook.py examples/quickstart.ipynb executed/quickstart.ipynb
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(NotebookClient):
    """A notebook client that prints what a person would see, when they would see it."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content, kind = msg["content"], msg["msg_type"]
        if kind == "stream":
            self._print(content["text"])
        elif kind in ("display_data", "execute_result", "update_display_data"):
            self._show(content, cell_index, update=kind == "update_display_data")
        return super().process_message(msg, cell, cell_index)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_key: str | None = None
        self._last_height = 0
        self._updated: dict[str, str] = {}
        self._homes: dict[str, int] = {}

    def show_updates(self) -> None:
        """Where nothing can be drawn over, show once what displays have become."""
        for text in self._updated.values():
            self._print(f"{text}\n")
        self._updated.clear()

    def _show(self, content: dict[str, Any], cell_index: int, *, update: bool) -> None:
        text = "[a picture]" if "image/png" in content["data"] else content["data"].get("text/plain", "")
        key = content.get("transient", {}).get("display_id")
        # what changes further up, in a cell that is done, is not printed again down here
        is_elsewhere = key is not None and self._homes.setdefault(key, cell_index) != cell_index
        if not text or is_elsewhere:
            return
        if update and not (sys.stdout.isatty() and key == self._last_key):
            self._updated[key] = text
            return
        if update:
            sys.stdout.write(f"\x1b[{self._last_height}A\x1b[J")
        self._print(f"{text}\n")
        self._last_key, self._last_height = key, text.count("\n") + 1

    def _print(self, text: str) -> None:
        self._last_key = None
        sys.stdout.write(text if sys.stdout.isatty() else ANSI.sub("", text))
        sys.stdout.flush()


def main() -> int:
    """Run the notebook named first and leave it, executed, under the name given second."""
    source, target = (Path(argument) for argument in sys.argv[1:3])
    notebook = nbformat.read(source, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    number, started, began = 0, time.monotonic(), time.monotonic()

    def on_start(cell: Any, cell_index: int) -> None:
        nonlocal number, began
        if cell.cell_type == "markdown":
            print(f"\n{cell.source}\n", flush=True)
        elif cell.cell_type == "code":
            number, began = number + 1, time.monotonic()
            first, *rest = cell.source.splitlines() or [""]
            print(f"── cell {number} of {len(cells)}: {first}{' …' if rest else ''}", flush=True)

    def on_done(cell: Any, cell_index: int, execute_reply: Any) -> None:
        client.show_updates()
        print(f"── {time.monotonic() - began:.1f} s\n", flush=True)

    client = Terminal(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_start=on_start,
        on_cell_executed=on_done,
    )
    failed = 0
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        print(error)
        failed = 1
    except AssertionError:
        # Ctrl-C: nbclient ends the kernel, and once more when it has left
        if client.km is not None:
            raise
        print("stopped")
        failed = 130
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    print(f"{number} cells in {time.monotonic() - started:.0f} s; the executed notebook is {target}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
