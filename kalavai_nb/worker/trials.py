"""The trials of all owners on one worker: a `Runner` for each lease, and what they say on its way home."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kalavai_nb.blobs import BlobStore
from kalavai_nb.worker.child import warm_fork_server
from kalavai_nb.worker.runner import Runner, RunnerOptions
from kalavai_nb.worker.wire import Message

PAUSE_SECONDS = 0.02
# a chunk leaves before it is this large
CHUNK_BYTES = 1 << 22

Send = Callable[[Message], None]


class Trials:
    """The runners of one worker, by lease."""

    def __init__(self, directory: Path, blobs: BlobStore, environment: dict[str, str]) -> None:
        self._directory, self._blobs, self._environment = directory, blobs, environment
        self._runners: dict[str, tuple[str, Runner]] = {}
        self._closing: set[asyncio.Task[Any]] = set()
        self._warm = False

    def give(
        self,
        owner: str,
        run: str,
        lease: str,
        orders: list[Message],
        options: Message,
        visible: dict[str, str],
        send: Send,
    ) -> None:
        """Queue trials on a lease. ``send`` gets chunks of what they say."""
        if lease not in self._runners:
            chosen = RunnerOptions(**options, environment={**self._environment, **visible})
            news = News(send, run=run, lease=lease)

            def tell(item: Message) -> None:
                # what lies here until its owner has it goes with the owner
                for handed in (item.get("value"), item.get("files")):
                    if handed and "inline" not in handed:
                        self._blobs.hold(handed["digest"], owner)
                news.put(item)

            runner = Runner(self._directory, self._blobs.directory, chosen, tell, self._all_closed)
            self._runners[lease] = (owner, runner)
        runner = self._runners[lease][1]
        runner.give([self._located(order) for order in orders])

    def warm(self) -> None:
        """Let the fork server import, once, what training with torch imports: seconds, which each trial would spend."""
        if not self._warm:
            self._warm = True
            warm_fork_server()

    def stop(self, lease: str, index: int, reason: str) -> None:
        if lease in self._runners:
            self._runners[lease][1].stop(index, reason)

    def answer(self, lease: str, index: int, step: int, stop: str) -> None:
        if lease in self._runners:
            self._runners[lease][1].answer(index, step, stop)

    def log_path(self, lease: str) -> Path | None:
        """Where the trial that runs on this lease writes its log."""
        return self._runners[lease][1].log if lease in self._runners else None

    def end(self, *, lease: str = "", owner: str = "", everything: bool = False) -> asyncio.Future[Any]:
        """End the trials of a lease, of an owner, or all. Nothing new begins here before they are gone."""
        chosen = [key for key, (who, _) in self._runners.items() if everything or key == lease or who == owner]
        runners = [self._runners.pop(key)[1] for key in chosen]
        task = asyncio.ensure_future(_close(runners))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _all_closed(self) -> None:
        while self._closing:
            await asyncio.wait(self._closing)

    def _located(self, order: Message) -> Message:
        """Names of blobs as paths."""
        found = dict(order)
        found["fn"] = (str(self._blobs.path(order["fn"][0])), order["fn"][1])
        for name in ("config", "checkpoint"):
            if isinstance(order[name], dict):
                found[name] = {**order[name], "path": str(self._blobs.path(order[name]["digest"]))}
        found["directory"] = str(self._directory / f"dir-{order['directory']}")
        return found


class News:
    """What the trials of one lease say: the first word at once, those that follow soon together."""

    def __init__(self, send: Send, **header: str) -> None:
        self._send, self._header = send, header
        self._said: list[Message] = []
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, item: Message) -> None:
        if item["kind"] == "end" and self._said and self._said[-1] == {**self._said[-1], **_began(item)}:
            self._said.pop()  # its end says that it began
        self._said.append(item)
        self._bytes += len((item.get("value") or {}).get("inline", b"")) + len(item.get("log", ""))
        if self._timer is None:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._on_timer)
        elif self._bytes > CHUNK_BYTES:
            self._flush()

    def _on_timer(self) -> None:
        self._timer = None
        if self._said:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._on_timer)

    def _flush(self) -> None:
        self._send({"kind": "trials", **self._header, "news": self._said})
        self._said, self._bytes = [], 0


def _began(end: Message) -> Message:
    return {"kind": "began", "index": end["index"]}


async def _close(runners: list[Runner]) -> None:
    await asyncio.gather(*(runner.close() for runner in runners))
