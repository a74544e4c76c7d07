"""How a command that goes on for long is ended: asked once it lets what runs end, asked twice it ends now."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

# a terminal that is closed, Ctrl-C, and what systemd says first
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """``asked`` is set with the first signal, ``now`` with the second."""

    def __init__(self) -> None:
        self.asked, self.now = asyncio.Event(), asyncio.Event()

    def ask(self, now: bool = False) -> None:
        """End it, ``now`` or when what runs has ended. Asked again, it ends now."""
        if now or self.asked.is_set():
            self.now.set()
        self.asked.set()

    def on_signals(self) -> None:
        """Signals to this process ask for it. One that is ignored (nohup) stays so."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.ask)

    async def drain(self, seconds: float, is_over: Callable[[], Awaitable[bool]], every: float = 0.5) -> bool:
        """Wait until it is over, at most for so long, and not where it is asked for now; whether it is over."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await is_over():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or self.now.is_set():
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.now.wait(), min(every, left))
        return True
