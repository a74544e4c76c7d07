"""The gate of an embedded pool: a process beside it, on loopback, for other notebooks of this machine.

It gets one JSON line on standard input, says its port in one line, and then answers each line with one. It ends when
standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from kalavai_nb.errors import KalavaiError, PoolClosed
from kalavai_nb.gate.gate import Gate, Host
from kalavai_nb.members import Members
from kalavai_nb.security import Authority, new_key

LOOPBACK = "127.0.0.1"


async def _ask_head(asked: dict[str, Any]) -> dict[str, Any]:
    raise PoolClosed("an embedded pool tells of itself in its notebook: pool.snapshot() there.")


async def main() -> None:
    """Serve until nobody writes any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    parent = os.getppid()
    given = json.loads(await lines.readline())
    host = Host(
        pool=given["pool"],
        authority=Authority.load(given["authority"]),
        members=Members(),
        key=new_key(),
        admin_key="",
        addresses=lambda port: [f"{LOOPBACK}:{port}"],
        head_port=lambda: int(given["head_port"]),
        ask_head=_ask_head,
        stays=False,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    gate = Gate(host)
    await gate.start(LOOPBACK, 0)
    print(json.dumps({"port": gate.port}), flush=True)
    while os.getppid() == parent and (line := await lines.readline()):
        try:
            reply: dict[str, Any] = gate.invite(**json.loads(line))
        except KalavaiError as error:
            reply = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(reply), flush=True)
    await gate.close()


if __name__ == "__main__":
    asyncio.run(main())
