"""A notebook's link, seen from the notebook: a process beside it, and what that says."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from kalavai_nb.errors import PoolClosed, revived
from kalavai_nb.identity import Identity

START_SECONDS = 60.0
ASK_SECONDS = 40.0
CLOSE_SECONDS = 5.0


class LinkProcess:
    """The link of one notebook to the pool that it was invited to.

    ``address`` is where the head is found from here, ``proxy`` the port that leads to other machines. ``on_renewed`` is
    told of a newer certificate, ``on_end`` why there will be no way to the head any more. Raises InviteError or
    PoolClosed where there is no way in.
    """

    def __init__(self, invite: str, label: str) -> None:
        self.on_renewed: Callable[[Identity], None] = lambda identity: None
        self.on_end: Callable[[str], None] = lambda why: None
        self._replies: queue.Queue[dict[str, Any]] = queue.Queue()
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kalavai_nb.link"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._pid = os.getpid()
        self._reader = threading.Thread(target=self._read, name="kalavai-link", daemon=True)
        self._reader.start()
        try:
            first = self._ask({"invite": invite, "label": label}, START_SECONDS)
        except BaseException:
            self.close()
            raise
        self.pool: str = first["pool"]
        self.member: str = first["member"]
        self.may_invite: bool = first["may_invite"]
        self.stays: bool = first["stays"]
        self.identity = Identity(**first["identity"])
        self.address = f"tls://127.0.0.1:{first['head']}"
        self.proxy: int = first["proxy"]

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def invite(self, role: str, seconds: float, uses: int, stay_seconds: float) -> str:
        """A new invite from the pool. Raises KalavaiError where this notebook may not invite."""
        asked = {"role": role, "seconds": seconds, "uses": uses, "stay_seconds": stay_seconds}
        return str(self._ask(asked, ASK_SECONDS)["invite"])

    def close(self) -> None:
        """Hang up. Idempotent."""
        if os.getpid() != self._pid:
            return
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(CLOSE_SECONDS)
        self._process.stdout.close()

    # inside

    def _ask(self, asked: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        with self._turn:
            try:
                assert self._process.stdin
                self._process.stdin.write(json.dumps(asked) + "\n")
                self._process.stdin.flush()
                reply = self._replies.get(timeout=timeout_seconds)
            except (OSError, ValueError, queue.Empty):
                raise PoolClosed(
                    f"the link to the pool has not answered for {timeout_seconds:.0f} s. Try again; kn.Pool(…) makes "
                    "another link."
                ) from None
        if "error" in reply:
            raise revived(reply.get("kind", ""), reply["error"])
        return reply

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            if "reply" in said:
                self._replies.put(said["reply"])
            elif "error" in said or "pool" in said:
                self._replies.put(said)
            elif said["state"] == "renewed":
                self.on_renewed(Identity(**said["identity"]))
            elif said["state"] == "refused":
                self.on_end(said["why"])
        self.on_end("the process that kept the link to the pool has ended")
        # nobody must wait for it
        self._replies.put({"error": "the link to the pool has ended.", "kind": "PoolClosed"})
