"""A unix socket of this user, to a process that serves a pool: one line of JSON in, one out, on each connection.

It is in a private directory and open to its user alone; where the system says who calls, others are refused as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from kalavai_nb.errors import KalavaiError
from kalavai_nb.places import private_directory

NAME = "agent.sock"
MOST_BYTES = 1 << 24
_ASK_SECONDS = 10.0
_LISTEN_SECONDS = 30.0
# what the path of a unix socket may have, with its end
_LONGEST_PATH = 107

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class NotRunning(KalavaiError):
    """Nobody serves this pool here now."""


async def listen(directory: Path, answer: Answer) -> asyncio.Server:
    """Answer what is asked at the socket in ``directory``. An error of ours becomes ``{"error": sentence}``."""
    private_directory(directory)
    (directory / NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # made under this mask it is never open to others, not even for a moment
    before = os.umask(0o177)
    try:
        with _reachable(directory) as path:
            listener.bind(path)
    finally:
        os.umask(before)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError, asyncio.IncompleteReadError):
            if _is_own(writer.get_extra_info("socket")):
                line = await asyncio.wait_for(reader.readline(), _LISTEN_SECONDS)
                writer.write(json.dumps(await _said(answer, line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, sock=listener, limit=MOST_BYTES)


def ask(directory: Path, op: str, *, limit_seconds: float = _ASK_SECONDS, **fields: Any) -> dict[str, Any]:
    """What the process that serves this directory answers. Raises NotRunning, or KalavaiError with its sentence."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(limit_seconds)
        try:
            with _reachable(directory) as path:
                caller.connect(path)
            caller.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with caller.makefile("rb") as stream:
                line = stream.readline(MOST_BYTES)
        except TimeoutError:
            raise KalavaiError(
                f"the process that serves this pool here did not answer within {limit_seconds:.0f} s; try again."
            ) from None
        except OSError:
            raise NotRunning("nothing serves this pool here now") from None
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        raise NotRunning("the process that served this pool here ended before it answered") from None
    if "error" in answer:
        raise KalavaiError(str(answer["error"]))
    return answer


def is_running(directory: Path) -> bool:
    """Whether a process serves this directory now."""
    with socket.socket(socket.AF_UNIX) as caller, contextlib.suppress(OSError), _reachable(directory) as path:
        caller.settimeout(_ASK_SECONDS)
        caller.connect(path)
        return True
    return False


async def _said(answer: Answer, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        if not isinstance(asked, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError):
        return {"error": "wanted one line of JSON with an 'op'"}
    try:
        return await answer(asked)
    except KalavaiError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"it cannot be kept: {error.strerror or error}"}
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"what was asked cannot be meant: {type(error).__name__}: {error}"}


def _is_own(connection: Any) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] in (os.getuid(), 0))


@contextlib.contextmanager
def _reachable(directory: Path) -> Iterator[str]:
    """A path to the socket that is short enough for the system, however deep the directory is."""
    path = str(directory / NAME)
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    file = os.open(directory, os.O_PATH if hasattr(os, "O_PATH") else os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{file}/{NAME}"
    finally:
        os.close(file)
