"""Inside a child: the IPython kernel that is one rank of a session.

The host reaches it over IPC sockets in a directory of its own; it opens no TCP port. What a cell needs beyond its
source rides in the ``kalavai`` field of the execute request's metadata (`Order`), what it leaves behind in the
``kalavai`` field of the reply's content (`Report`).
"""

from __future__ import annotations

import base64
import faulthandler
import os
import random
import signal
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any, NotRequired, TypedDict

import cloudpickle
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Config

from kalavai_nb.blobs import BlobStore, load, pack
from kalavai_nb.roads import PORTS

# output waits so long for more of it, instead of ipykernel's 0.2 s
FLUSH_SECONDS = 0.02
GIVEN = ("rank", "world_size", "device")


class Order(TypedDict):
    """What a rank needs to run a cell: {name: (path, sizes)} to take in, names to hand out, its place in the gang."""

    take: dict[str, tuple[str, str, list[int]]]
    out: list[str]
    count: int
    rank: int
    world_size: int
    device: str
    env: dict[str, str]
    blobs: str


class Report(TypedDict):
    """What a cell left in a rank: each name's digest (empty where the rank assigned it), and what was asked for."""

    names: dict[str, str]
    out: dict[str, dict[str, Any]]
    port: int
    error: NotRequired[str]


class RankApp(IPKernelApp):
    """A kernel application without the thread for subshells, which nobody opens here: one hop less per message."""

    def init_control(self, context: Any) -> None:
        super().init_control(context)
        self.shell_channel_thread = None

    def init_kernel(self) -> None:
        super().init_kernel()
        self.kernel.shell_channel_thread = _NoThread()


class _NoThread:
    """Stands where ipykernel looks for the thread it would use: there is none, and cells run in the main thread."""

    def __init__(self) -> None:
        self.parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class RankKernel(IPythonKernel):
    """An IPython kernel that takes names in before a cell and hands names out after it."""

    interrupts: Connection | None = None
    # ipykernel's pause against lost output; the end of a cell comes behind its output on the same socket here
    _execute_sleep = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._received: dict[str, tuple[str, Any]] = {}
        self._error: BaseException | None = None

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False

    def _publish_execute_input(self, code: str, parent: Any, execution_count: int) -> None:
        """Nobody listens who does not know what runs."""

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        # "busy" would be one message more for each cell, and nobody waits for it
        if status != "busy":
            super()._publish_status(status, channel, parent)

    def pre_handler_hook(self) -> None:
        super().pre_handler_hook()
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        # tells the host that this rank is not stuck in C code, so that it gets the time to clean up
        if self.interrupts:
            self.interrupts.send_bytes(b"interrupted")
        raise KeyboardInterrupt

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool = False,
        *,
        cell_meta: dict[str, Any] | None = None,
        cell_id: str | None = None,
    ) -> dict[str, Any]:
        order: Order | None = (cell_meta or {}).get("kalavai")
        reply: dict[str, Any]
        if order is None:
            reply = await super().do_execute(code, silent, store_history, user_expressions, allow_stdin)
            return reply
        self.shell.execution_count = order["count"]
        self.shell.last_execution_result = None
        try:
            self._take(order)
            reply = await super().do_execute(code, silent, store_history, user_expressions, allow_stdin)
            out = self._hand_out(order) if reply["status"] == "ok" else {}
        except BaseException as error:  # an interrupt while a large value is read is an outcome, too
            reply, out = self._failed(error), {}
        report: Report = {"names": self._names(), "out": out, "port": free_port()}
        if reply["status"] == "error":
            report["error"] = self._pickled_error(reply)
            _leave_process_group()
        return {**reply, "kalavai": report}

    def _take(self, order: Order) -> None:
        os.environ.update(order["env"])
        namespace = self.shell.user_ns
        namespace.update(rank=order["rank"], world_size=order["world_size"], device=_torch_device(order["device"]))
        for name, (path, digest, sizes) in order["take"].items():
            try:
                value = load(path, sizes)
            except Exception as error:
                what = f"`{name}` came from the notebook but cannot be rebuilt in this rank: {error}"
                error.add_note(what + ". Install what it needs on this machine, or leave it out with send=none.")
                raise
            namespace[name] = value
            self._received[name] = (digest, value)

    def _names(self) -> dict[str, str]:
        hidden, names = self.shell.user_ns_hidden, {}
        for name, value in self.shell.user_ns.items():
            if name.startswith("_") or name in hidden or name in GIVEN or name in ("In", "Out"):
                continue
            digest, received = self._received.get(name, ("", None))
            names[name] = digest if received is value else ""
        return names

    def _hand_out(self, order: Order) -> dict[str, dict[str, Any]]:
        out = {}
        for name in order["out"]:
            if name not in self.shell.user_ns:
                raise NameError(f"out={name} was asked for, but this rank has no name {name!r} after the cell")
            value = self.shell.user_ns[name]
            # under a name of its own, so that whoever brings it home can have it forgotten here
            packed = pack(value, self.shell.user_ns).renamed()
            BlobStore(order["blobs"]).keep(packed)
            out[name] = {"digest": packed.blob.digest, "sizes": packed.blob.sizes, "what": describe(value)}
        return out

    def _failed(self, error: BaseException) -> dict[str, Any]:
        self._error = error
        if all(frame.filename == __file__ for frame in traceback.extract_tb(error.__traceback__)):
            # a sentence of ours, which says all
            lines = "".join(traceback.format_exception_only(error)).splitlines()
        else:
            lines = self.shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
        return {"status": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": lines}

    def _pickled_error(self, reply: dict[str, Any]) -> str:
        """The exception itself, as text; empty where it cannot be pickled."""
        result = self.shell.last_execution_result
        error = (result and (result.error_in_exec or result.error_before_exec)) or self._error
        self._error = None
        try:
            return base64.b64encode(cloudpickle.dumps(error)).decode() if error else ""
        except Exception:
            return ""


def main(directory: str, interrupts: Connection) -> None:
    """Run a kernel whose connection file and sockets are in ``directory``."""
    from ipykernel.iostream import OutStream

    OutStream.flush_interval = FLUSH_SECONDS
    os.environ["IPYTHONDIR"] = directory
    config = Config()
    config.HistoryManager.enabled = False
    RankKernel.interrupts = interrupts
    app = RankApp.instance(
        config=config,
        connection_file=os.path.join(directory, "kernel.json"),
        transport="ipc",
        ip=os.path.join(directory, "ipc"),
        kernel_class=RankKernel,
    )
    app.initialize([])
    # a crash in C code leaves its last words in the log, though the kernel listens to descriptor 2
    faulthandler.enable(open(os.path.join(directory, "log"), "a"))
    sys.path.insert(0, "")
    app.start()


def describe(value: Any) -> str:
    """One line about a value: its type, and shape and dtype where it has them."""
    text = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and not callable(shape):
        text += f" {tuple(shape)}"
    return text + (f" {dtype}" if dtype is not None else "")


def free_port() -> int:
    """A TCP port of this machine that nothing listens on, for MASTER_PORT."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def _torch_device(name: str) -> Any:
    torch = sys.modules.get("torch")
    return torch.device(name) if torch else name


def _leave_process_group() -> None:
    """After a failed cell its process group is broken for all ranks: leave it, so that the cell can run again."""
    distributed = sys.modules.get("torch.distributed")
    if (
        distributed
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_backend() == "gloo"
    ):
        distributed.destroy_process_group()
