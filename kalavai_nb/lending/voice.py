"""What a command that goes on for long says: lines for people, or lines of JSON; and one word when it is ready."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any


class Voice:
    """Says lines to who started the command.

    ``ready_file`` is the number of a pipe to the process that put this one into the background: it hears the same lines
    until all is ready.
    """

    def __init__(self, as_json: bool = False, ready_file: int | None = None, stamped: bool = False) -> None:
        self._as_json, self._ready_file, self._stamped = as_json, ready_file, stamped

    def say(self, text: str, event: str = "note", **facts: Any) -> None:
        """One line: a sentence, with facts for programs."""
        said = {"event": event, "text": text, **facts}
        self._pass_on(said)
        if self._as_json:
            self._print(json.dumps({"time": round(time.time(), 3), **said}))
        else:
            stamp = f"{time.strftime('%H:%M:%S')}  " if self._stamped else ""
            self._print("\n".join(stamp + line for line in text.splitlines()))

    def stamp(self) -> None:
        """From here on each line has the time of day before it: what follows happens by itself."""
        self._stamped = True

    def is_ready(self, text: str, event: str = "ready", **facts: Any) -> None:
        """All is up, as this line says: whoever waited for it need wait no longer."""
        self.say(text, event, **facts)
        self._pass_on({"event": "is ready", "text": ""})
        if self._ready_file is not None:
            with contextlib.suppress(OSError):
                os.close(self._ready_file)
            self._ready_file = None

    def _pass_on(self, said: dict[str, Any]) -> None:
        if self._ready_file is not None:
            with contextlib.suppress(OSError):
                os.write(self._ready_file, json.dumps(said).encode() + b"\n")

    def _print(self, text: str) -> None:
        # the terminal may be gone, and that is no reason to take the machine out of the pool
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
