"""Outside of a rank: its process, and the wire to its kernel. A source goes in, Jupyter outputs come out."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from kalavai_nb.worker import rank
from kalavai_nb.worker.child import Child, Ending, pipe
from kalavai_nb.worker.outbox import Outbox

START_SECONDS = 60.0
# a rank that does not even reach the interpreter after SIGINT sits in C code, such as a collective
STUCK_SECONDS = 5.0
# one that does is cleaning up, or swallows KeyboardInterrupt
STUBBORN_SECONDS = 14.0
# SIGINT is sent so many times in the former time, until the rank says that it has it
INTERRUPTS = 5


class RankProcess:
    """One rank of a session. ``generation`` names this very process: a rank that was replaced has another one."""

    def __init__(self, directory: Path, env: dict[str, str], lease: str, owner: str) -> None:
        self.lease, self.owner = lease, owner
        self.generation = secrets.token_hex(4)
        self._directory = directory / f"rank-{self.generation}"
        self._directory.mkdir(mode=0o700)
        self._interrupts, theirs = pipe()
        log = self._directory / "log"
        self.child = Child(rank.main, (str(self._directory), theirs), env, log)
        theirs.close()
        self.outbox: Outbox | None = None
        # the cell that it was given last
        self.run = ""
        self._client: Any = None
        self._asked_to_stop: asyncio.Task[None] | None = None
        self._why_killed = ""

    async def start(self) -> None:
        """Connect to the kernel once it answers. Raises RuntimeError or TimeoutError where it does not start."""
        connecting = asyncio.ensure_future(self._connect())
        either: list[asyncio.Future[Any]] = [connecting, self.child.ended]
        try:
            await asyncio.wait(either, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.wait([connecting])
        if not connecting.cancelled():
            connecting.result()
        elif self.child.ended.done():
            ending = self.child.ended.result()
            raise RuntimeError(f"a rank did not start: it {ending}\n{ending.tail}")
        else:
            raise TimeoutError(f"a rank did not start within {START_SECONDS:.0f} s")

    async def execute(self, code: str, order: rank.Order, outbox: Outbox) -> None:
        """Run a cell; what it shows goes to ``outbox``, then its end: a reply of the kernel, or how the rank died."""
        self.outbox = outbox
        running = asyncio.ensure_future(self._converse(code, order, outbox))
        either: list[asyncio.Future[Any]] = [running, self.child.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            # what it said last may still be in the sockets
            await asyncio.wait([running], timeout=0.1)
        if running.done() and not running.exception():
            end = running.result()
        else:
            running.cancel()
            end = self._death(await self.child.ended)
        self._forget_interrupt()
        self.outbox = None
        outbox.end(end)
        if self.child.ended.done():
            # nobody will ask for its end any more
            await self.close()

    def interrupt(self, reason: str) -> None:
        """SIGINT now; SIGKILL later, if the cell does not end by itself. A second call is SIGKILL now."""
        if self._asked_to_stop:
            self._why_killed = "interrupted twice"
            self.child.signal(signal.SIGKILL)
        elif self.outbox:
            self._asked_to_stop = asyncio.ensure_future(self._stop(reason))

    async def close(self) -> None:
        """End the rank, and what it left running. Its session's names are gone."""
        self._forget_interrupt()
        await self.child.kill()
        if self._client:
            self._client.stop_channels()
        self._interrupts.close()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    # inside

    async def _connect(self) -> None:
        import zmq.asyncio
        from jupyter_client.asynchronous import AsyncKernelClient

        file = self._directory / "kernel.json"
        while not (file.exists() and file.read_bytes().endswith(b"}")):
            await asyncio.sleep(0.01)
        # one context for all ranks: each would have two threads, and keep them until it is collected
        client = AsyncKernelClient(connection_file=str(file), context=zmq.asyncio.Context.instance())
        client.load_connection_file()
        client.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=False)
        try:
            # the first message on iopub shows that the subscription is in force
            while True:
                client.kernel_info()
                with contextlib.suppress(queue.Empty):
                    await client.get_iopub_msg(timeout=0.5)
                    break
            # what IPython still sets up in its first cell is done before anybody waits for it
            client.execute("pass", silent=True, store_history=False)
            await client.get_shell_msg()
        except BaseException:
            client.stop_channels()
            raise
        self._client = client

    async def _converse(self, code: str, order: rank.Order, outbox: Outbox) -> dict[str, Any]:
        client = self._client
        message = client.session.msg(
            "execute_request",
            {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False},
            metadata={"kalavai": order},
        )
        client.shell_channel.send(message)
        request = message["header"]["msg_id"]
        while True:
            output = await client.get_iopub_msg()
            if output["parent_header"].get("msg_id") != request:
                # a thread that outlives its cell still belongs to its rank
                if output["msg_type"] != "stream":
                    continue
            elif output["msg_type"] == "status" and output["content"]["execution_state"] == "idle":
                break
            if item := _item(output):
                outbox.put(item)
        while True:
            reply = await client.get_shell_msg()
            if reply["parent_header"].get("msg_id") == request:
                content: dict[str, Any] = reply["content"]
                return content

    async def _stop(self, reason: str) -> None:
        began = time.monotonic()
        while self._interrupts.poll():
            self._interrupts.recv_bytes()
        for _ in range(INTERRUPTS):
            # one that comes before the kernel has begun the cell is ignored there
            self.child.signal(signal.SIGINT)
            await asyncio.sleep(STUCK_SECONDS / INTERRUPTS)
            if self._interrupts.poll():
                break
        await asyncio.sleep(max(0.0, began + STUCK_SECONDS - time.monotonic()))
        with contextlib.suppress(EOFError, OSError):
            if self._interrupts.poll():
                await asyncio.sleep(STUBBORN_SECONDS - STUCK_SECONDS)
                self._why_killed = f"it did not stop within {STUBBORN_SECONDS:.0f} s of {reason}"
            else:
                self._why_killed = f"it sat in C code (a collective?) for {STUCK_SECONDS:.0f} s after {reason}"
        self.child.signal(signal.SIGKILL)

    def _forget_interrupt(self) -> None:
        if self._asked_to_stop:
            self._asked_to_stop.cancel()
            self._asked_to_stop = None

    def _death(self, ending: Ending) -> dict[str, Any]:
        return {
            "status": "died",
            "how": str(ending),
            "killed_because": self._why_killed,
            "out_of_memory": ending.out_of_memory,
            "tail": ending.tail,
        }


def _item(message: dict[str, Any]) -> list[Any] | None:
    """A message of the kernel as an outbox item; None for what is not output."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        return ["stream", content["name"], content["text"]]
    if kind in ("display_data", "update_display_data"):
        display_id = content.get("transient", {}).get("display_id", "")
        return ["display" if kind == "display_data" else "update", content["data"], content["metadata"], display_id]
    if kind == "execute_result":
        return ["result", content["data"], content["metadata"]]
    if kind == "clear_output":
        return ["clear", content["wait"]]
    return None
