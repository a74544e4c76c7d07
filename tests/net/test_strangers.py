"""Who may not come in does not: each is refused with one line in the log of the pool, and nobody is inside."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, Network
from kalavai_nb.errors import InviteError
from kalavai_nb.invites import Invite
from kalavai_nb.lending.local_socket import ask
from kalavai_nb.security import Authority
from pooled import Verb

# one caller at a time says something to the gate, and how that ends
CALL = """
import pathlib, socket, ssl, sys
host, port, foreign, files = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
def plain(said):
    def call(caller):
        caller.sendall(said)
        caller.shutdown(socket.SHUT_WR)
    return call
def tls(certificate):
    def call(caller):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate:
            context.load_cert_chain(certificate)
        context.wrap_socket(caller)
    return call
ways = [plain(pathlib.Path(file).read_bytes()) for file in files]
if foreign:
    ways += [plain(b""), plain(b"GET / HTTP/1.1\\r\\nHost: pool\\r\\n\\r\\n"), tls(""), tls(foreign)]
for way in ways:
    with socket.create_connection((host, port), timeout=20) as caller:
        try:
            way(caller)
            said = b""
            while piece := caller.recv(4096):
                said += piece
            print("closed after", said[:20])
        except OSError as error:
            print(type(error).__name__)
"""
# with a key that nobody knows, or without one, as whoever
SSH = """
import asyncio, asyncssh, sys
host, port, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
ways = [
    {"client_keys": [key], "preferred_auth": "publickey"},
    {"client_keys": [], "password": "den", "preferred_auth": "password,keyboard-interactive,none"},
    {"client_keys": [], "preferred_auth": "none"},
]
async def main():
    for name in names:
        for way in ways:
            try:
                common = {"known_hosts": None, "agent_path": None, "config": []}
                async with asyncssh.connect(host, port, username=name, **common, **way):
                    print("inside", name, way)
            except (OSError, asyncssh.Error) as error:
                print(type(error).__name__)
asyncio.run(main())
"""
# each of these invites, one after the other
ENROL = """
import asyncio, sys
from kalavai_nb.errors import KalavaiError
from kalavai_nb.invites import Invite
from kalavai_nb.lending.local_socket import ask
from kalavai_nb.link.enrol import enrol
for line in sys.stdin:
    try:
        member = asyncio.run(enrol(Invite.decode(line), "stranger"))
        print("inside", member.member)
    except KalavaiError as error:
        print(type(error).__name__, error)
"""
# with the files of a member that has joined as a worker: what its certificate is good for at the head
AS_USER = """
import asyncio, sys, kalavai_nb
from kalavai_nb.link.connection import Link
from kalavai_nb.link.membership import memberships
from kalavai_nb.security import dask_security
[member] = memberships()
async def main():
    from distributed import Client
    link = Link(member)
    await link.open()
    try:
        security = dask_security(member.identity)
        async with Client(f"tls://127.0.0.1:{link.head_port}", security=security, asynchronous=True) as client:
            print(await client.run_on_scheduler(lambda: "ran on the head"))
    except (OSError, TimeoutError) as error:
        print("refused", type(error).__name__)
    finally:
        await link.close()
asyncio.run(main())
"""
# TLS of a foreign authority, and none at all, through the link of a member: a pickle before the handshake ends
PICKLE = """
import asyncio, ssl, struct, sys
from distributed.comm.utils import to_frames
from distributed.protocol.serialize import ToPickle
from kalavai_nb.link.connection import Link
from kalavai_nb.link.membership import memberships
[member] = memberships()
mark, certificates = sys.argv[1], sys.argv[2:]
class Touch:
    def __reduce__(self):
        import pathlib
        return pathlib.Path.touch, (pathlib.Path(mark),)
async def call(link, certificate):
    context = None
    if certificate != "plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate:
            context.load_cert_chain(certificate)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.head_port, ssl=context)
        frames = await to_frames({"op": "identity", "x": ToPickle(Touch())})
        sizes = struct.pack("<Q", len(frames)) + b"".join(struct.pack("<Q", len(each)) for each in frames)
        said = sizes + b"".join(bytes(each) for each in frames)
        writer.write(struct.pack("<Q", len(said)) + said)
        await writer.drain()
        print("heard", len(await asyncio.wait_for(reader.read(8), 20)))
    except (OSError, TimeoutError) as error:
        print("refused", type(error).__name__)
async def main():
    link = Link(member)
    await link.open()
    for certificate in certificates:
        await call(link, certificate)
    await link.close()
asyncio.run(main())
"""


class Den:
    """A pool that lends its own device, and a stranger on the same network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network(directory)
        self.hub, self.stranger = self.network.host("hub"), self.network.host("stranger")
        self.pool = Verb(self.hub, "start", "den", "--devices", "1")
        try:
            self.port = str(self.pool.wait_for("ready")["port"])
        except BaseException:
            self.network.close()
            raise

    @property
    def refused(self) -> list[str]:
        """The lines of the pool's log that say that somebody was refused."""
        return [line["text"] for line in self.pool.said if "refused" in line.get("text", "")]

    def members(self) -> list[str]:
        return [str(member["id"]) for member in self.ask("members")["members"]]

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """What the pool answers its owner."""
        return ask(self.hub.home / "kalavai" / "pools" / "den", op, **fields)

    def invite(self, role: str = "user", seconds: float = 7200) -> dict[str, Any]:
        """A new invite, and what is known of it."""
        return self.ask("invite", role=role, seconds=seconds, uses=1)

    def call(self, *words: str) -> str:
        return self.stranger.python(CALL, self.hub.address, self.port, *words).strip()

    def enrol(self, host: Host, *invites: str) -> list[str]:
        """How each of these invites fares on a host, in order."""
        said = host.run([sys.executable, "-c", ENROL], given="\n".join(invites) + "\n")
        return said.splitlines()

    def refuses(self, count: int, since: int) -> None:
        """So many lines, no less and no more, have come since."""
        deadline = time.monotonic() + 20
        while len(self.refused) < since + count:
            assert time.monotonic() < deadline, self.refused[since:]
            time.sleep(0.02)
        time.sleep(0.2)
        assert len(self.refused) == since + count, self.refused[since:]


@pytest.fixture(scope="module")
def den(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Den]:
    den = Den(tmp_path_factory.mktemp("den"))
    yield den
    den.network.close()


@pytest.fixture(scope="module")
def foreign(den: Den) -> str:
    """A file with the certificate and key of another pool's authority."""
    identity = Authority("elsewhere").issue("user:stranger", listens=False)
    path = den.directory / "foreign.pem"
    path.write_text(identity.certificate + identity.key)
    return str(path)


def test_who_speaks_something_else_gets_nowhere(den: Den, foreign: str, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(random.Random(1).randbytes(100_000))
    (tmp_path / "dask").write_bytes(_dask_hello())
    before, inside = len(den.refused), den.members()
    ends = den.call(foreign, str(tmp_path / "garbage"), str(tmp_path / "dask")).splitlines()
    assert len(ends) == 6
    den.refuses(6, before)
    assert den.members() == inside


def test_who_has_no_key_that_is_known_gets_nowhere(den: Den) -> None:
    den.enrol(den.network.host("guest"), den.invite()["invite"])
    before, inside = len(den.refused), den.members()
    ends = den.stranger.python(SSH, den.hub.address, den.port, inside[-1], den.invite()["id"], "admin", "root")
    assert len(ends.splitlines()) == 12
    assert "inside" not in ends
    den.refuses(12, before)
    assert den.members() == inside


def test_invites_that_are_over_let_nobody_in(den: Den) -> None:
    used, revoked = den.invite(), den.invite("worker")
    expired = den.invite("worker", 1)
    [said] = den.enrol(den.network.host("first"), used["invite"])
    assert said.startswith("inside")
    den.ask("revoke", who=revoked["id"])
    time.sleep(1.5)
    before, inside = len(den.refused), den.members()
    said = den.enrol(den.stranger, used["invite"], revoked["invite"], expired["invite"])
    assert ["has been used" in said[0], "revoked" in said[1], "expired" in said[2]] == [True] * 3, said
    den.refuses(3, before)
    assert den.members() == inside


def test_an_invite_that_is_cut_short_or_has_a_wrong_character_is_told_from_others(den: Den) -> None:
    text = den.invite()["invite"]
    for length in range(len(text)):
        with pytest.raises(InviteError):
            Invite.decode(text[:length])
    for position in range(len(text)):
        for other in {chr(ord(text[position]) ^ 1), "A" if text[position] != "A" else "B"}:
            with pytest.raises(InviteError):
                Invite.decode(text[:position] + other + text[position + 1 :])


def test_a_forged_invite_lets_nobody_in_whichever_byte_of_it_is_wrong(den: Den) -> None:
    invite = Invite.decode(den.invite()["invite"])
    secrets = [replace(invite, secret=_flipped(invite.secret, place)).encode() for place in range(16)]
    gates = [replace(invite, gate=_flipped(invite.gate, place)).encode() for place in range(32)]
    before, inside = len(den.refused), den.members()
    said = den.enrol(den.stranger, *secrets)
    assert all(line.startswith("NotWelcome") for line in said), said
    den.refuses(16, before)
    said = den.enrol(den.stranger, *gates)
    assert all("something else than the gate" in line for line in said), said
    den.refuses(16 + 32, before)
    assert den.members() == inside
    # the role is the invitation's, not what the text says
    [said_as_worker] = den.enrol(den.network.host("forger"), replace(invite, role="worker").encode())
    assert "another role" in said_as_worker
    assert [member["role"] for member in den.ask("members")["members"][len(inside) :]] in ([], ["user"])


def test_what_was_recorded_on_the_wire_is_worth_nothing(den: Den) -> None:
    """A listener between both records all that a user says, and says it again."""
    router = den.network.host("between")
    recorded = den.directory / "recorded"
    command = [sys.executable, "-c", _RECORD, den.hub.address, den.port, str(recorded)]
    listening = router.begin(command)
    assert listening.stdout
    port = listening.stdout.readline().strip()
    invite = Invite.decode(den.invite()["invite"])
    through = replace(invite, addresses=(f"{router.address}:{port}",)).encode()
    [said] = den.enrol(den.network.host("heard"), through)
    assert said.startswith("inside")
    listening.wait(20)
    assert recorded.stat().st_size > 1000
    before, inside = len(den.refused), den.members()
    assert den.call("", str(recorded))
    den.refuses(1, before)
    assert den.members() == inside


@pytest.fixture(scope="module")
def lender(den: Den) -> Host:
    """A host that is a member as a worker."""
    host = den.network.host("lender")
    [said] = den.enrol(host, den.invite("worker")["invite"])
    assert said.startswith("inside")
    return host


def test_a_certificate_of_a_worker_is_not_one_of_a_user(den: Den, lender: Host) -> None:
    assert lender.python(AS_USER).startswith("refused")


def test_a_pickle_before_the_handshake_ends_is_not_read(den: Den, lender: Host, foreign: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for end in lender.python(PICKLE, str(mark), "plain", "", foreign).splitlines():
        assert end.startswith("refused") or end == "heard 0"
    assert not mark.exists()


def test_a_pickle_of_a_member_is_read_as_the_threat_model_says(den: Den, lender: Host, tmp_path: Path) -> None:
    identity = json.loads(next((lender.home / "kalavai").glob("joined/*/membership.json")).read_text())["identity"]
    own, mark = tmp_path / "own.pem", tmp_path / "mark"
    own.write_text(identity["certificate"] + identity["key"])
    lender.python(PICKLE, str(mark), str(own))
    assert mark.exists(), "Dask reads before it knows the operation: members can run code on the head"


def test_hundreds_of_silent_callers_keep_nobody_out_for_long(den: Den) -> None:
    """A caller that says nothing is hung up on; while hundreds do, others still get in."""
    source = (
        "import socket, sys, time\n"
        "held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(300)]\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    holding = den.stranger.begin([sys.executable, "-c", source, den.hub.address, den.port])
    assert holding.stdout
    assert holding.stdout.readline() == "held\n"
    invite = den.invite()["invite"]
    [said] = den.enrol(den.network.host("patient"), invite)
    assert said.startswith("inside")
    den.stranger.kill()


_RECORD = """
import socket, sys, threading
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
caller, _ = listener.accept()
called = socket.create_connection((host, port))
def back():
    while piece := called.recv(65536):
        caller.sendall(piece)
    caller.shutdown(socket.SHUT_WR)
threading.Thread(target=back, daemon=True).start()
with open(path, "wb") as record:
    while piece := caller.recv(65536):
        record.write(piece)
        called.sendall(piece)
called.close()
"""


def _flipped(text: str, place: int) -> str:
    raw = bytearray.fromhex(text)
    raw[place] ^= 1 << place % 8
    return raw.hex()


def _dask_hello() -> bytes:
    """What a client of Dask says first to one that speaks no TLS."""
    from distributed.protocol import dumps

    frames = dumps({"op": "identity", "reply": True})
    sizes = [len(frames), *(len(bytes(frame)) for frame in frames)]
    packed = b"".join(size.to_bytes(8, "little") for size in sizes) + b"".join(bytes(frame) for frame in frames)
    return len(packed).to_bytes(8, "little") + packed
