"""What a front end sends to a widget, seen when it comes and not only when the cell that runs has ended."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any


def see_arrivals(comm: Any, see: Callable[[dict[str, Any]], None]) -> None:
    """Have ``see`` called with the data of each message to this comm as it comes, where the kernel can do that.

    ipykernel from 7.4 asks each comm, on the thread that reads the shell channel, which shell should handle a message.
    That question is the one moment at which a message is seen while a cell blocks the main thread, so we look here, and
    leave the message to go its way: the widget handles it once more, later, and whoever looks must expect that. No
    shell of our own is made to handle it at once: handling a message makes it the parent of all that threads print from
    then on, and what the threads of the cell print would go astray.

    The answer is the shell that the front end named. The kernel's own is the one that last published on this comm,
    which says nothing here, where a thread does that, and may name a subshell that is gone.

    ``see`` must be quick, and may not raise.
    """
    if not callable(getattr(comm, "_reply_subshell_for", None)):
        return

    def shell_of(data: Any, named: str | None) -> str | None:
        with contextlib.suppress(Exception):  # an error here would lose the message
            see(data)
        return named

    comm._reply_subshell_for = functools.wraps(comm._reply_subshell_for)(shell_of)
