"""A verb that goes on, put into the background: a process with a session of its own, which says when it is ready."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kalavai_nb.errors import KalavaiError

LOG = "log"
READY_OPTION = "--ready-file"


def detach(words: Sequence[str], log: Path, say: Callable[[dict[str, Any]], None]) -> int:
    """Start ``kalavai-nb`` with these words in the background, and return its process id when it is ready.

    What it says until then goes to ``say`` as well; all goes to ``log``. Raises KalavaiError, with the end of what it
    said, where it ends before it is ready. Ctrl-C meanwhile ends it.
    """
    reader, writer = os.pipe()
    with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
        start = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "kalavai_nb", *words, READY_OPTION, str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    try:
        with open(reader) as lines:
            for line in lines:
                said = json.loads(line)
                if said["event"] == "is ready":
                    # it lives on without this process
                    process.returncode = 0
                    return process.pid
                say(said)
    except KeyboardInterrupt:
        process.terminate()
        raise
    process.wait()
    with open(log, "rb") as file:
        file.seek(start)
        said = file.read().decode(errors="replace").strip().splitlines()
    last = said[-1].removeprefix("kalavai-nb: ") if said else f"it ended with status {process.returncode}"
    raise KalavaiError(f"{last} ({log} has all that it said)")
