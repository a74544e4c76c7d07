"""Frames over real TLS connections: order, sizes, and what happens to what is no frame."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalavai_nb.frames import MAX_HEAD_BYTES, PREFIX, FrameError, Sender, dial, hang_up, quick, receive
from kalavai_nb.security import Authority

AUTHORITY = Authority("test")


@contextmanager
def connected() -> Iterator[tuple[socket.socket, ssl.SSLSocket]]:
    """(the end that dialled, the end that listened)."""
    server = AUTHORITY.issue("worker:a", listens=True).context(server=True)
    client = AUTHORITY.issue("user:b", listens=False).context(server=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[ssl.SSLSocket] = []

        def accept() -> None:
            plain, _ = listener.accept()
            accepted.append(server.wrap_socket(quick(plain), server_side=True))

        thread = threading.Thread(target=accept)
        thread.start()
        ours = dial(listener.getsockname(), client, {"as": "test"}, 10)
        thread.join()
    assert receive(accepted[0])[0] == {"as": "test"}
    try:
        yield ours, accepted[0]
    finally:
        hang_up(ours)
        hang_up(accepted[0])


def test_frames_of_all_sizes_arrive_whole_and_in_order() -> None:
    sizes = [0, 1, 100, 1 << 20, 3, (1 << 15) - 10, 1 << 15, 5 << 20, 0, 7]
    bodies = [os.urandom(size) for size in sizes]
    with connected() as (ours, theirs):
        sender = Sender(ours)
        for number, body in enumerate(bodies):
            sender.send({"number": number, "rows": [1, 2]}, body)
        for number, body in enumerate(bodies):
            assert receive(theirs) == ({"number": number, "rows": [1, 2]}, body)
        sender.close()
        with pytest.raises(ConnectionError):
            receive(theirs)


def test_a_broken_connection_is_told_of_once_and_swallows_what_follows() -> None:
    broken = threading.Event()
    told = []

    def on_broken() -> None:
        told.append(1)
        broken.set()

    with connected() as (ours, theirs):
        sender = Sender(ours, on_broken)
        hang_up(theirs)
        while not broken.is_set():
            sender.send({"a": 1}, bytes(1000))
        for _ in range(10):
            sender.send({"a": 1}, bytes(1 << 20))
        sender.close()
    assert told == [1]


def test_a_stranger_is_refused_and_so_is_plain_text() -> None:
    server = AUTHORITY.issue("worker:a", listens=True).context(server=True)
    stranger = Authority("other").issue("user:b", listens=False).context(server=False)
    for client in (stranger, None):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            failures: list[BaseException] = []

            def accept(listener: socket.socket = listener, failures: list[BaseException] = failures) -> None:
                plain, _ = listener.accept()
                with plain:
                    try:
                        server.wrap_socket(plain, server_side=True).close()
                    except OSError as error:
                        failures.append(error)

            thread = threading.Thread(target=accept)
            thread.start()
            plain = socket.create_connection(listener.getsockname(), 10)
            try:
                if client:
                    receive(client.wrap_socket(plain))
                else:
                    plain.sendall(PREFIX.pack(1, 0) + b"\x80")
                    assert plain.recv(1) in (b"", b"\x15")
            except (OSError, ConnectionError):
                pass
            finally:
                plain.close()
            thread.join()
            assert failures


@pytest.mark.parametrize(
    "sent",
    [
        PREFIX.pack(MAX_HEAD_BYTES + 1, 0),
        PREFIX.pack(2, 1 << 62) + b"\x80",
        PREFIX.pack(1, 0) + b"\xc1",
        PREFIX.pack(3, 0) + msgpack.packb([1, 2]),
        PREFIX.pack(2, 0) + b"\x80\x80",
    ],
)
def test_what_is_no_frame_is_refused(sent: bytes) -> None:
    with connected() as (ours, theirs):
        ours.sendall(sent)
        with pytest.raises(FrameError):
            receive(theirs)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_no_input_does_more_than_end_the_connection(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        try:
            while True:
                head, _ = receive(theirs)
                assert isinstance(head, dict)
        except ConnectionError:
            pass
