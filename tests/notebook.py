"""A real kernel, driven as a front end would: sources in, Jupyter messages out."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

ANSI = re.compile(r"\x1b\[[0-9;]*m")
PATIENCE_SECONDS = 120.0


def listens_on(process: psutil.Process, address: str) -> bool:
    """Whether this process listens on the port of ``tls://host:port``."""
    with contextlib.suppress(psutil.Error):
        connections = process.net_connections("tcp")
        return any(c.status == "LISTEN" and address.endswith(f":{c.laddr.port}") for c in connections)
    return False


@dataclass
class Cell:
    """One executed cell: its reply, and every iopub message with the time it came and its size on the wire."""

    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    message_bytes: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> str:
        return str(self.reply["content"]["status"])

    @property
    def error(self) -> str:
        """``"ValueError: text"``, empty where the cell was fine."""
        content = self.reply["content"]
        return f"{content['ename']}: {content['evalue']}" if content["status"] == "error" else ""

    @property
    def traceback(self) -> str:
        return ANSI.sub("", "\n".join(self.reply["content"].get("traceback", [])))

    def stream(self, name: str = "stdout") -> str:
        texts = [m["content"] for _, m in self.messages if m["msg_type"] == "stream"]
        return "".join(content["text"] for content in texts if content["name"] == name)

    @property
    def displays(self) -> list[dict[str, Any]]:
        """The data of displays as a person sees them at the end: updates in place."""
        shown: dict[str, dict[str, Any]] = {}
        for number, (_, message) in enumerate(self.messages):
            if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
                id = message["content"].get("transient", {}).get("display_id") or f"#{number}"
                shown[id] = message["content"]["data"]
        return list(shown.values())

    @property
    def text(self) -> str:
        """All that is to be read: streams and the plain text of displays."""
        return "\n".join([self.stream(), self.stream("stderr"), *(d.get("text/plain", "") for d in self.displays)])


class Notebook:
    """A kernel and its channels. ``run`` waits for the cell's end, ``begin`` does not."""

    def __init__(
        self, cwd: str | None = None, env: dict[str, str] | None = None, argv: list[str] | None = None
    ) -> None:
        self.manager = KernelManager(kernel_name="python3")
        if argv:
            # not ipykernel: such a one passes ■ on by itself
            self.manager.kernel_spec.argv, self.manager.kernel_spec.interrupt_mode = argv, "message"
        self.manager.start_kernel(cwd=cwd, env={**os.environ, **(env or {})})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def descendants(self) -> list[psutil.Process]:
        """The pool's processes among all there are: those that were told of, or forked from, this kernel."""
        return psutil.Process(self.pid).children(recursive=True)

    def begin(self, source: str) -> str:
        return str(self.client.execute(source))

    def run(self, source: str, timeout: float = PATIENCE_SECONDS) -> Cell:
        return self.finish(self.begin(source), timeout)

    def ok(self, source: str, timeout: float = PATIENCE_SECONDS) -> Cell:
        cell = self.run(source, timeout)
        assert cell.status == "ok", cell.traceback
        return cell

    def value(self, expression: str, timeout: float = PATIENCE_SECONDS) -> Any:
        """What an expression is there; of what JSON knows."""
        said = self.ok(f"import json as _json; print('\\x01' + _json.dumps({expression}))", timeout).stream()
        return json.loads(said.rsplit("\x01", 1)[1])

    def finish(self, request: str, timeout: float = PATIENCE_SECONDS) -> Cell:
        """All messages of this request, until the kernel is idle again."""
        return self._collect(request, time.monotonic() + timeout, lambda message: False)

    def wait_for_text(self, request: str, text: str, timeout: float = PATIENCE_SECONDS) -> Cell:
        """Messages of this request until its streams or displays contain ``text``."""
        shown = ("stream", "display_data", "update_display_data")
        enough = lambda message: message["msg_type"] in shown and text in str(message["content"])  # noqa: E731
        return self._collect(request, time.monotonic() + timeout, enough)

    def interrupt(self) -> None:
        """■: SIGINT to the kernel's process group, as Jupyter does it."""
        self.manager.interrupt_kernel()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _collect(self, request: str, deadline: float, enough: Any) -> Cell:
        cell, started = Cell(), time.monotonic()
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"the cell did not get there; so far: {cell.text}") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
            cell.messages.append((time.time(), message))
            # content alone would hide what many small messages cost
            cell.message_bytes += sum(
                len(str(message[part])) for part in ("header", "parent_header", "content", "metadata")
            )
            if enough(message):
                return cell
        cell.seconds = time.monotonic() - started
        while True:
            reply = self.client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            if reply["parent_header"].get("msg_id") == request:
                cell.reply = reply
                return cell
