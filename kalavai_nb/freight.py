"""Content on its way: to the machines that need it, once to each, and home from there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from kalavai_nb.blobs import PART, Blob, BlobStore, Packed, clear_parts, load, load_bytes
from kalavai_nb.errors import PoolClosed
from kalavai_nb.snapshot import Snapshot
from kalavai_nb.state import Device, machine_id

PIECE_BYTES = 8 << 20
PIECES_AT_ONCE = 2

Message = dict[str, Any]


class Connection(Protocol):
    """What content travels over: see `Engine`."""

    owner: str

    def call(self, messages: Iterable[tuple[str, Message]]) -> list[Message]: ...

    def tell(self, messages: Iterable[tuple[str, Message]]) -> None: ...

    def snapshot(self) -> Snapshot: ...


class Freight:
    """Knows what is where. A store on this very machine is written and read as files."""

    def __init__(self, connection: Connection) -> None:
        self._call, self._tell, self._snapshot = connection.call, connection.tell, connection.snapshot
        # each notebook fills files of its own, so two that send the same content do not meet
        self._writer = secrets.token_hex(4)
        # two that count on the same content do not take it from each other
        self._mine = {"owner": connection.owner}
        self._placed: dict[str, set[str]] = {}
        self._machines: dict[str, str] = {}
        self._stores: dict[str, BlobStore | None] = {}

    def lose(self, worker: str) -> None:
        """A worker is gone: what comes in its place may belong to a process with an empty store."""
        machine = self._machines.pop(worker, "")
        self._placed.pop(machine, None)
        # that process may have its store in another directory
        self._stores.pop(machine, None)

    def place(
        self, packed: Iterable[Packed], devices: Iterable[Device], on_piece: Callable[[int], None] = lambda _: None
    ) -> None:
        """Bring content to every machine of these devices that does not have it.

        Each content goes once to each machine, whichever of its workers will use it: through the head, or straight
        into its store where that is on this very machine. ``on_piece`` hears how many bytes have gone.
        """
        wanted = {p.blob.digest: p for p in packed}
        for device in {device.machine: device for device in devices}.values():
            placed = self._placed.setdefault(device.machine, set())
            self._machines[device.worker] = device.machine
            unknown = [digest for digest in wanted if digest not in placed]
            if not unknown:
                continue
            store = self._store_here(device)
            [missing] = self._call([(device.worker, {"op": "kn_missing", "digests": unknown, **self._mine})])
            for digest in present(missing):
                if store:
                    _keep(store, wanted[digest])
                    on_piece(wanted[digest].blob.total_bytes)
                    continue
                self._send(device.worker, wanted[digest], on_piece)
            placed |= set(unknown)

    def drop(self, digests: Iterable[str], devices: Iterable[Device]) -> None:
        """Let machines forget content that no rank will ask for again."""
        digests = list(digests)
        machines = {device.machine: device.worker for device in devices}
        for machine in machines:
            self._placed.get(machine, set()).difference_update(digests)
        self._tell([(worker, {"op": "kn_drop", "digests": digests, **self._mine}) for worker in machines.values()])

    def fetch(self, device: Device, handed: Message) -> Any:
        """The value that a rank on this device has handed out."""
        blob = Blob(handed["digest"], tuple(handed["sizes"]))
        if "inline" in handed:
            return load_bytes(handed["inline"], blob.sizes)
        if store := self._store_here(device):
            return load(store.path(blob.digest), blob.sizes)
        return load_bytes(b"".join(self._content(device, blob)), blob.sizes)

    def bring(self, device: Device, handed: Message, path: Path) -> None:
        """Bring what a trial on this device has handed out into a file, and let its machine forget it.

        Where the device's worker is gone, another one of its machine has the same content. Raises PoolClosed where none
        is left.
        """
        blob = Blob(handed["digest"], tuple(handed["sizes"]))
        clear_parts(path.parent, path.name)
        part = path.with_name(f"{path.name}.{self._writer}{PART}")
        try:
            if store := self._store_here(device):
                shutil.copyfile(store.path(blob.digest), part)
            else:
                with open(part, "wb") as file:
                    for piece in self._content(device, blob):
                        file.write(piece)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self.drop([blob.digest], [device])

    def _send(self, worker: str, packed: Packed, on_piece: Callable[[int], None]) -> None:
        """Piece by piece: one comes to the head while another one goes from there to the worker."""
        pieces = self._pieces(packed)
        under_way: deque[Future[int]] = deque()
        threads = ThreadPoolExecutor(PIECES_AT_ONCE, thread_name_prefix="kalavai-freight")
        try:
            for number, piece in enumerate(pieces):
                # the first makes the file, and with the last one it is whole
                room = 0 if number < 2 or piece["last"] else PIECES_AT_ONCE - 1
                while len(under_way) > room:
                    on_piece(under_way.popleft().result())
                under_way.append(threads.submit(self._put, worker, piece))
            while under_way:
                on_piece(under_way.popleft().result())
        finally:
            # interrupted, nobody waits for what is on its way
            threads.shutdown(wait=False, cancel_futures=True)

    def _put(self, worker: str, piece: Message) -> int:
        [reply] = self._call([(worker, {"op": "kn_put", **piece})])
        present(reply)
        return len(piece["piece"])

    def _content(self, device: Device, blob: Blob) -> Iterator[bytes]:
        """The content of a blob on the machine of this device, piece by piece."""
        workers = [device.worker]
        for offset in range(0, blob.total_bytes, PIECE_BYTES):
            message = {"op": "kn_get", "digest": blob.digest, "offset": offset, "length": PIECE_BYTES}
            [reply] = self._call([(workers[0], message)])
            if isinstance(reply, dict) and len(workers) == 1:
                workers += [other.worker for other in self._snapshot().devices if other.machine == device.machine]
            while isinstance(reply, dict) and len(workers) > 1:
                workers.pop(0)
                [reply] = self._call([(workers[0], message)])
            yield present(reply)

    def _store_here(self, device: Device) -> BlobStore | None:
        """The device's store, where this process can reach it as a directory: on the same machine, as the same user."""
        # of workers that others started, each may see other files (worker/scratch.py)
        if device.machine.partition("/")[0] != machine_id():
            return None
        if device.machine not in self._stores:
            [reply] = self._call([(device.worker, {"op": "kn_store"})])
            directory = Path(present(reply))
            reachable = directory.is_dir() and os.access(directory, os.R_OK | os.W_OK)
            self._stores[device.machine] = BlobStore(directory) if reachable else None
        return self._stores[device.machine]

    def _pieces(self, packed: Packed) -> Iterable[Message]:
        blob = packed.blob
        for offset, piece, last in packed.pieces(PIECE_BYTES):
            fields = {"digest": blob.digest, "writer": self._writer, "total_bytes": blob.total_bytes}
            yield {**fields, "offset": offset, "piece": piece, "last": last}


def _keep(store: BlobStore, packed: Packed) -> None:
    try:
        store.keep(packed)
    except FileNotFoundError:
        raise PoolClosed("the machine was taken back. Run the cell again; the pool has others.") from None


def present(reply: Any) -> Any:
    """The reply of a worker that is there. Raises PoolClosed for one that is not."""
    if isinstance(reply, dict) and "gone" in reply:
        raise PoolClosed(f"{reply['gone']}. Run the cell again; the pool replaces a worker within seconds.")
    return reply
