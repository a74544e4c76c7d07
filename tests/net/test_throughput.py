"""How fast 200 MB come through a router that lets nothing in, beside plain TLS in the same run. ``make test-net``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Host
from kalavai_nb.lending.local_socket import ask
from kalavai_nb.security import Authority
from pooled import Trio

pytestmark = pytest.mark.patient

MEGABYTES = 200
ROUNDS = 3
LEAST_RATIO = 0.5
SERVE = f"""
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
data = bytes(1 << 20)
while True:
    with context.wrap_socket(listener.accept()[0], server_side=True) as caller:
        for _ in range({MEGABYTES}):
            caller.sendall(data)
"""
FETCH = """
import socket, ssl, sys, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2])))) as called:
    begun, count, room = time.perf_counter(), 0, memoryview(bytearray(1 << 20))
    while got := called.recv_into(room):
        count += got
print(count / 1e6 / (time.perf_counter() - begun))
"""
# a scheduler or a worker of Dask with plain TLS, as others run them
DASK = """
import asyncio, pathlib, sys
from distributed import Scheduler, Security, Worker
file = sys.argv[1]
security = Security(tls_ca_file=file, require_encryption=True, tls_client_cert=file, tls_client_key=file,
                    tls_scheduler_cert=file, tls_scheduler_key=file, tls_worker_cert=file, tls_worker_key=file)
async def main():
    if len(sys.argv) > 2:
        server = Worker(sys.argv[2], security=security, nthreads=1, dashboard_address="127.0.0.1:0")
    else:
        server = Scheduler(host="0.0.0.0", port=8786, security=security, dashboard_address="127.0.0.1:0")
    async with server:
        print("up", flush=True)
        await server.finished()
asyncio.run(main())
"""
SEND = f"""
import numpy as np
def takes(data):
    return int(data[-1])
data = np.random.default_rng(0).integers(0, 255, {MEGABYTES}_000_000, dtype=np.uint8)
def send(pool, **where):
    # content that a machine has is not sent again
    data[0] += 1
    pool.run(lambda: 0, gpus=1, **where)
    begun = time.perf_counter()
    pool.run(takes, data, gpus=1, **where)
    return {MEGABYTES} / (time.perf_counter() - begun)
"""


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    trio = Trio(tmp_path_factory.mktemp("trio"))
    yield trio
    trio.close()


def said(what: str, plain: list[float], through: list[float]) -> float:
    """Print the best of each, since what else a machine does makes single figures lower; their ratio."""
    best, reached = max(plain), max(through)
    print(f"\n{MEGABYTES} MB {what}: plain TLS {best:.0f} MB/s, through the router {reached:.0f}, {reached / best:.2f}")
    return reached / best


def test_what_a_socket_gets(trio: Trio, tmp_path: Path) -> None:
    """The head's side of it: TLS end to end, in the one connection that the machine behind the router has opened."""
    identity = Authority("speed").issue("head", listens=True)
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(identity.certificate + identity.key)
    [directory] = (trio.far.home / "kalavai" / "joined").glob("*-worker")
    relay = ask(directory, "expose", port=serve(trio.far, "127.0.0.1", certificate))["relay"]
    port = serve(trio.near, "0.0.0.0", certificate)
    plain, through = [], []
    for _ in range(ROUNDS):
        plain.append(float(trio.hub.python(FETCH, trio.near.address, str(port))))
        through.append(float(trio.hub.python(FETCH, "127.0.0.1", str(relay))))
    # two more processes at work than with plain TLS, and all machines of this test share the cores of one
    assert said("to a socket", plain, through) >= LEAST_RATIO / 2


def test_what_a_rank_gets(trio: Trio, tmp_path: Path) -> None:
    """Notebook, its link, gate, head, gate, link and worker; beside notebook, scheduler and worker with plain TLS."""
    identity = Authority("plain").issue("head", listens=True)
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(identity.certificate + identity.key + identity.ca)
    scheduler, worker = trio.network.host("scheduler"), trio.network.host("worker")
    address = f"tls://{scheduler.address}:8786"
    for host, words in ((scheduler, []), (worker, [address])):
        started = host.begin([sys.executable, "-c", DASK, str(certificate), *words])
        assert started.stdout
        assert started.stdout.readline() == "up\n"
    trio.desk.ok(SEND)
    files = ", ".join(f"tls_client_{part}={str(certificate)!r}" for part in ("cert", "key"))
    trio.desk.ok(
        "from distributed import Security\n"
        f"security = Security(tls_ca_file={str(certificate)!r}, require_encryption=True, {files})\n"
        f"plain = kn.Pool({address!r}, security=security, quiet=True)"
    )
    plain, through = [], []
    for _ in range(ROUNDS):
        plain.append(trio.desk.value("send(plain)"))
        through.append(trio.desk.value("send(pool, host='far')"))
    trio.desk.ok("plain.close()")
    assert said("to a rank", plain, through) >= LEAST_RATIO


def serve(host: Host, address: str, certificate: Path) -> int:
    """The port at which a host gives everybody so many bytes, by TLS."""
    serving = host.begin([sys.executable, "-c", SERVE, address, str(certificate)])
    assert serving.stdout
    return int(serving.stdout.readline())
