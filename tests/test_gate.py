"""A real gate and real links on loopback: who gets in, what they may reach, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from kalavai_nb import cli
from kalavai_nb.commands import join
from kalavai_nb.errors import KalavaiError, NotWelcome, PoolClosed
from kalavai_nb.gate import channels
from kalavai_nb.gate.gate import Gate, Host
from kalavai_nb.gate.keys import ADMIN, invite_key, ssh_key
from kalavai_nb.gate.visitor import origin_of
from kalavai_nb.invites import Invite
from kalavai_nb.lending.voice import Voice
from kalavai_nb.link.connection import Link
from kalavai_nb.link.dial import ask, dial, hang_up
from kalavai_nb.link.enrol import enrol
from kalavai_nb.link.membership import find, load, memberships
from kalavai_nb.members import Members
from kalavai_nb.security import Authority, new_key

LOOPBACK = "127.0.0.1"
SECONDS = 30


class Place:
    """A gate with an echo behind it as its head; what it says, and what it was told to deny."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.said: list[str] = []
        self.denied: list[str] = []
        self.ahead = 0.0
        self.key, self.admin_key = new_key(), new_key()
        self.authority = Authority("lab")
        self.head_port = 0
        self.echoes: list[Any] = []

    async def open(self, port: int = 0) -> Gate:
        import time

        self.head = await asyncio.start_server(self._echo, LOOPBACK, 0)
        self.head_port = self.head.sockets[0].getsockname()[1]

        async def ask_head(asked: dict[str, Any]) -> dict[str, Any]:
            return {"pool": "lab", **asked}

        host = Host(
            "lab",
            self.authority,
            Members(self.home / "members.json"),
            self.key,
            self.admin_key,
            lambda port: [f"{LOOPBACK}:{port}"],
            lambda: self.head_port,
            ask_head,
            self.said.append,
            deny=self.denied.extend,
            clock=lambda: time.time() + self.ahead,
        )
        self.gate = Gate(host)
        await self.gate.start(LOOPBACK, port)
        return self.gate

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.echoes.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while content := await reader.read(1000):
                writer.write(b"head:" + content)
        writer.transport.abort()

    async def close(self) -> None:
        await self.gate.close()
        self.head.close()
        for echo in self.echoes:
            echo.cancel()
        await asyncio.gather(*self.echoes, return_exceptions=True)

    def invite(self, role: str, **options: Any) -> Invite:
        return Invite.decode(self.gate.invite(role, options.pop("seconds", 60), **options)["invite"])

    def refusals(self) -> list[str]:
        return [line for line in self.said if line.startswith("refused")]


def at_a_gate(test: Callable[[Place], Awaitable[None]]) -> Callable[[Path, pytest.MonkeyPatch], None]:
    """Run a coroutine against a gate of its own."""

    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KALAVAI_HOME", str(tmp_path / "member"))

        async def main() -> None:
            place = Place(tmp_path / "host")
            await place.open()
            try:
                async with asyncio.timeout(SECONDS):
                    await test(place)
            finally:
                await place.close()

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__  # type: ignore[attr-defined]
    return run


@contextlib.asynccontextmanager
async def linked(place: Place, role: str, label: str = "box") -> AsyncIterator[Link]:
    link = Link(await enrol(place.invite(role), label))
    await link.open()
    try:
        yield link
    finally:
        await link.close()


async def said_by(port: int, content: bytes = b"x") -> bytes:
    """What answers at this port of loopback; nothing where it hangs up."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(content)
    try:
        return await reader.read(100)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


@at_a_gate
async def test_an_invite_makes_a_member_whose_files_are_private(place: Place) -> None:
    invite = place.invite("worker")
    member = await enrol(invite, "  a\tbox ")
    assert (member.pool, member.role, member.label) == ("lab", "worker", "  a\tbox ")
    assert load(member.directory) == member
    assert list(memberships()) == [member] == [find(pool="lab")]
    file = member.directory / "membership.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    known = place.gate.host.members.members[0]
    assert (known.label, known.role) == ("a box", "worker")
    assert "PRIVATE" not in (place.home / "members.json").read_text()


@at_a_gate
async def test_the_same_invite_on_the_same_machine_is_no_other_use(place: Place) -> None:
    invite = place.invite("user")
    first = await enrol(invite, "ada")
    again = await enrol(invite, "ada")
    assert again.member == first.member
    assert place.gate.host.members.invitations[0].used == 1


@at_a_gate
async def test_a_pool_that_was_made_anew_is_meant_by_its_name(place: Place) -> None:
    """``kalavai-nb stop --forget`` leaves members behind who know nothing of it."""
    old = await enrol(place.invite("worker"), "box")
    await place.close()
    anew = Place(place.home / "anew")
    await anew.open(place.gate.port)
    new = await enrol(anew.invite("worker"), "box")
    assert find(pool="lab", role="worker") == new
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        chosen = join._membership(cli.parser().parse_args(["join", "lab"]), Voice())
    assert chosen == new
    assert f"this is the one used last, {new.pool_id}" in said.getvalue()
    assert f"kalavai-nb leave {old.pool_id} --forget" in said.getvalue()
    # by its id the other one is meant, and nothing has to be said
    with contextlib.redirect_stdout(said := io.StringIO()):
        assert join._membership(cli.parser().parse_args(["join", old.pool_id]), Voice()) == old
    assert said.getvalue() == ""
    await anew.close()


@at_a_gate
async def test_memberships_that_nobody_renews_are_forgotten_after_months(place: Place) -> None:
    old = await enrol(place.invite("user"), "ada")
    os.utime(old.directory / "membership.json", (1e9, 1e9))
    await enrol(place.invite("worker"), "box")
    assert [member.role for member in memberships()] == ["worker"]


@at_a_gate
async def test_an_invite_that_was_used_up_expired_or_revoked_says_so(place: Place) -> None:
    used, old, revoked = (place.invite("user", seconds=seconds) for seconds in (60, 5, 60))
    await enrol(used, "ada")
    place.ahead = 10.0
    place.gate.revoke(revoked.id)
    os.environ["KALAVAI_HOME"] += "-of-another"
    for invite, reason in ((used, "has been used"), (old, "expired 5 s ago"), (revoked, "was revoked")):
        with pytest.raises(NotWelcome, match=reason):
            await enrol(invite, "thief")
        await until(lambda reason=reason: any(reason in line for line in place.refusals()))
    assert len(place.refusals()) == 3
    assert len(place.gate.host.members.members) == 1


@at_a_gate
async def test_strangers_are_refused_with_one_line_each(place: Place) -> None:
    port, gate = place.gate.port, place.gate.fingerprint
    invite = place.invite("user")
    forged = Invite(invite.pool, invite.addresses, gate, "00" * 16, "user", invite.expires)
    address = [f"{LOOPBACK}:{port}"]
    for username, key in (
        (invite.id, invite_key(forged)),
        (forged.id, invite_key(forged)),
        (ADMIN, ssh_key(new_key())),
        ("root", ssh_key(new_key())),
    ):
        before = len(place.refusals())
        with pytest.raises(NotWelcome, match="does not know this invite or member"):
            await dial(address, gate, username, key)
        await until(lambda before=before: len(place.refusals()) == before + 1)
    before = len(place.refusals())
    assert b"SSH-2.0" in await said_by(port, b"GET / HTTP/1.0\r\n\r\n")
    await until(lambda: len(place.refusals()) == before + 1)
    with pytest.raises((asyncssh.Error, OSError)):
        await asyncssh.connect(LOOPBACK, port, username="root", password="root", known_hosts=None, config=[])
    assert place.gate.host.members.members == []


@at_a_gate
async def test_another_gate_at_the_address_is_no_gate(place: Place) -> None:
    invite = place.invite("user")
    other = Invite(invite.pool, invite.addresses, "00" * 32, invite.secret, "user", invite.expires)
    with pytest.raises(PoolClosed, match="is something else than the gate of this pool"):
        await enrol(other, "ada")
    nobody = Invite(invite.pool, ("127.0.0.1:1",), invite.gate, invite.secret, "user", invite.expires)
    with pytest.raises(PoolClosed, match="Does the pool run"):
        await enrol(nobody, "ada")


@at_a_gate
async def test_the_first_address_that_is_right_is_taken(place: Place) -> None:
    invite = place.invite("user")
    with socket.create_server((LOOPBACK, 0)) as silent:
        addresses = (f"{LOOPBACK}:{silent.getsockname()[1]}", "127.0.0.1:1", *invite.addresses)
        member = await enrol(Invite("lab", addresses, invite.gate, invite.secret, "user", invite.expires), "ada")
    assert member.addresses[0] == invite.addresses[0]


@at_a_gate
async def test_members_reach_the_head_and_what_others_expose_and_nothing_else(place: Place) -> None:
    async with linked(place, "worker") as box, linked(place, "user", "ada") as ada:
        assert await said_by(box.head_port) == await said_by(ada.head_port) == b"head:x"
        here = await asyncio.start_server(place._echo, LOOPBACK, 0)
        relay = await box.expose(here.sockets[0].getsockname()[1])
        assert await said_by(relay) == b"head:x"

        async def by_proxy(host: str, port: int) -> bytes:
            name = host.encode()
            reader, writer = await asyncio.open_connection(LOOPBACK, ada.proxy_port)
            writer.write(b"\x05\x01\x00")
            await reader.readexactly(2)
            writer.write(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
            content = b""
            with contextlib.suppress(ConnectionError):
                answer = await reader.read(10)
                writer.write(b"y")
                content = await reader.read(100) if answer[1:2] == b"\x00" else b""
            writer.close()
            return content

        assert await by_proxy("relay", relay) == b"head:y"
        assert await by_proxy("head", 1) == b"head:y"
        for host, port in (("relay", place.head_port), (LOOPBACK, place.head_port), ("relay", 22), ("example.org", 80)):
            assert await by_proxy(host, port) == b"", (host, port)
        place.gate.allow(place.head_port)
        assert await by_proxy("relay", place.head_port) == b"head:y"
        place.gate.forbid(place.head_port)
        assert await by_proxy("relay", place.head_port) == b""
        # whoever listens there once it is hidden has nothing to do with the pool
        await box.hide(here.sockets[0].getsockname()[1])
        async with asyncio.timeout(10):
            while place.gate.is_allowed(relay):
                await asyncio.sleep(0.01)
        assert await by_proxy("relay", relay) == b""
        assert await box.expose(here.sockets[0].getsockname()[1])
        with pytest.raises(PoolClosed, match="opens no port"):
            await ada.expose(here.sockets[0].getsockname()[1])
        here.close()


@at_a_gate
async def test_each_role_asks_for_what_is_its_own(place: Place) -> None:
    async with linked(place, "worker") as box, linked(place, "user", "ada") as ada:
        assert (await box.ask("snapshot"))["pool"] == "lab"
        for link, command in ((box, "invite"), (box, "enrol"), (ada, "revoke"), (ada, "stop"), (ada, "rm -rf /")):
            with pytest.raises(KalavaiError, match=r"nothing that a connection of role|cannot be understood"):
                await link.ask(command)
        with pytest.raises(KalavaiError, match="only whoever opened it invites"):
            await ada.ask("invite", role="user", seconds=60, uses=1)
        place.gate.host.users_invite = True
        assert "invite" in await ada.ask("invite", role="user", seconds=60, uses=1)
    admin, _ = await dial([f"{LOOPBACK}:{place.gate.port}"], place.gate.fingerprint, ADMIN, ssh_key(place.admin_key))
    listed = await ask(admin, "members")
    assert {m["label"] for m in listed["members"]} == {"box", "ada"}
    assert "key" not in listed["members"][0]
    assert (await ask(admin, "revoke", who="box"))["revoked"][0]["label"] == "box"
    with pytest.raises(KalavaiError, match="cannot be understood"):
        await ask(admin, "invite", role="user")
    await hang_up(admin)


@at_a_gate
async def test_who_is_revoked_is_cut_off_at_once_and_for_good(place: Place) -> None:
    states: list[str] = []
    async with linked(place, "worker") as box:
        box.on_state = lambda state, why: states.append(state)
        await until(lambda: "renewed" in states)
        place.gate.revoke("box")
        await box.wait_down()
        with pytest.raises(NotWelcome, match="revoked"):
            await box.wait_up()
        assert states[-2:] == ["down", "refused"]
        assert place.denied == [f"worker:{box.membership.member}"]
        with pytest.raises((ConnectionError, OSError)):
            await said_by(box.head_port)


@at_a_gate
async def test_who_may_stay_for_a_time_is_cut_off_after_it(place: Place) -> None:
    invite = place.invite("worker", stay_seconds=100)
    link = Link(await enrol(invite, "box"))
    await link.open()
    place.ahead = 200.0
    await link.wait_down()
    with pytest.raises(NotWelcome, match="this membership ended"):
        await link.wait_up()
    await link.close()


@at_a_gate
async def test_a_link_comes_back_by_itself_to_a_gate_that_was_started_again(place: Place) -> None:
    async with linked(place, "worker") as box:
        here = await asyncio.start_server(place._echo, LOOPBACK, 0)
        port = here.sockets[0].getsockname()[1]
        await box.expose(port)
        head_port, gate_port = box.head_port, place.gate.port
        await place.gate.close()
        place.head.close()
        await box.wait_down()
        with pytest.raises(PoolClosed, match="no connection to the pool at this moment"):
            await box.ask("snapshot")
        await place.open(gate_port)
        await box.wait_up()
        assert box.head_port == head_port
        assert await said_by(head_port) == await said_by(box.exposed[port]) == b"head:x"
        here.close()


@at_a_gate
async def test_a_machine_that_comes_again_has_its_old_connection_closed(place: Place) -> None:
    async with linked(place, "worker") as box:
        other = Link(box.membership)
        await other.open()
        await box.wait_down()
        await other.close()


@at_a_gate
async def test_a_crowd_of_strangers_keeps_nobody_out_for_long(place: Place) -> None:
    crowd = [await asyncio.open_connection(LOOPBACK, place.gate.port) for _ in range(100)]
    for _, writer in crowd:
        writer.close()
    await until(lambda: len(place.refusals()) >= 64)
    async with linked(place, "user") as ada:
        assert await said_by(ada.head_port) == b"head:x"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
def test_who_has_a_network_has_one_origin(one: str, other: str) -> None:
    assert origin_of(one) == origin_of(other)


def test_others_have_another_origin() -> None:
    hosts = ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::1", "2001:db8:1:3::1", "?"]
    assert len({origin_of(host) for host in hosts}) == len(hosts)


@at_a_gate
async def test_a_member_has_so_many_connections_open_and_gets_more_when_some_end(place: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels, "MOST_CHANNELS", 3)
        async with (
            linked(place, "user", "ada") as ada,
            linked(place, "user", "ada") as again,
            contextlib.AsyncExitStack() as more,
        ):
            # on another machine, since of one machine all are one member
            patch.setenv("KALAVAI_HOME", str(place.home / "eve"))
            eve = await more.enter_async_context(linked(place, "user", "eve"))
            assert ada.membership.member == again.membership.member != eve.membership.member
            kept = [await asyncio.open_connection(LOOPBACK, ada.head_port) for _ in range(3)]
            for reader, writer in kept:
                writer.write(b"x")
                assert await reader.read(100) == b"head:x"
            for _ in range(5):
                assert await said_by(ada.head_port) == b""
            said = [line for line in place.said if "has 3 connections open through the gate" in line]
            assert len(said) == 1
            assert said[0].startswith("ada (")
            assert await said_by(again.head_port) == b"", "its other connection to the gate gets no more either"
            assert await said_by(eve.head_port) == b"head:x", "nobody else's"
            for _, writer in kept:
                writer.close()
            async with asyncio.timeout(10):
                while await said_by(ada.head_port) != b"head:x":
                    await asyncio.sleep(0.01)


@at_a_gate
async def test_who_has_left_for_good_is_cut_off_too(place: Place) -> None:
    """Else it could not be revoked: it is nobody."""
    async with linked(place, "user") as box:
        await box.ask("forget")
        await box.wait_down()
        with pytest.raises(NotWelcome):
            await box.wait_up()


@at_a_gate
async def test_what_a_stranger_says_before_it_shows_a_key_is_not_the_pools_word(place: Place) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # SSH's words for "no more ways to log in"
        said = bytes([1, 0, 0, 0, 14, 0, 0, 0, 3]) + b"bye" + bytes(4)
        padding = 8 + -(len(said) + 5) % 8
        writer.write(b"SSH-2.0-x\r\n" + (len(said) + padding + 1).to_bytes(4, "big") + bytes([padding]))
        writer.write(said + bytes(padding))
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(serve, LOOPBACK, 0)
    address = f"{LOOPBACK}:{stranger.sockets[0].getsockname()[1]}"
    with pytest.raises(PoolClosed, match="something else than the gate"):
        await dial([address], place.gate.fingerprint, "m-1", ssh_key(new_key()))
    stranger.close()


@at_a_gate
async def test_what_cannot_be_meant_is_refused_with_a_sentence(place: Place) -> None:
    connection, _ = await dial(
        [f"{LOOPBACK}:{place.gate.port}"], place.gate.fingerprint, ADMIN, ssh_key(place.admin_key)
    )
    for wrong in ({"uses": float("inf")}, {"seconds": 1e300}, {"seconds": "1e400"}, {"stay_seconds": -1}):
        with pytest.raises(KalavaiError):
            await ask(connection, "invite", **{"role": "user", "seconds": 60, "uses": 1, **wrong})
    assert place.gate.host.members.invitations == []
    await hang_up(connection)
