"""What lends a machine, piece by piece: which devices, what is kept, the agent's socket, the unit of a service."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.hosting.kept import Kept, default_name
from kalavai_nb.hosting.reach import invited_addresses, own_addresses, public_addresses, unknown_names
from kalavai_nb.lending.choice import chosen_devices
from kalavai_nb.lending.ending import Ending
from kalavai_nb.lending.holders import held_devices, running, span
from kalavai_nb.lending.kept import Lends
from kalavai_nb.lending.lent import Lent
from kalavai_nb.lending.limits import Limits
from kalavai_nb.lending.local_socket import NAME, NotRunning, ask, is_running, listen
from kalavai_nb.lending.owner import Owner
from kalavai_nb.lending.refusals import Refusals
from kalavai_nb.lending.service import Service
from kalavai_nb.lending.voice import Voice
from kalavai_nb.state import Device

GPUS = [Device(f"gpu-{index}", index, "cuda", "RTX 3060", "box", "box-1", 12 << 30) for index in range(2)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KALAVAI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# which devices


def orders(lent: Lent) -> tuple[list[str], dict[str, str]]:
    devices, leaving = lent.order()
    return [device.id for device in devices], {id: each["why"] for id, each in leaving.items()}


def test_a_device_that_its_owner_keeps_is_drained_and_then_lent_again() -> None:
    lent = Lent(GPUS, 60)
    assert orders(lent) == (["gpu-0", "gpu-1"], {})
    assert not lent.is_settled()
    lent.hear({"gpu-0": "lent", "gpu-1": "lent"})
    assert lent.is_settled()
    lent.keep({"gpu-1": "in use: blender"})
    assert orders(lent) == (["gpu-0", "gpu-1"], {"gpu-1": "in use: blender"})
    lent.hear({"gpu-0": "lent", "gpu-1": "leaving"})
    assert lent.shown()["gpu-1"]["state"] == "leaving"
    lent.hear({"gpu-0": "lent", "gpu-1": "left"})
    assert orders(lent) == (["gpu-0"], {})
    lent.keep({})
    assert orders(lent) == (["gpu-0", "gpu-1"], {})
    # what was said before it was ordered again does not take it away
    lent.hear({"gpu-0": "lent", "gpu-1": "starting"})
    assert orders(lent) == (["gpu-0", "gpu-1"], {})


def test_a_device_that_cannot_be_lent_is_not_waited_for() -> None:
    lent = Lent(GPUS, 60)
    lent.order()
    lent.hear({"gpu-0": "failing: the pool has this very device already", "gpu-1": "starting"})
    assert not lent.is_settled()
    lent.hear({"gpu-0": "failing: the pool has this very device already", "gpu-1": "lent"})
    assert lent.is_settled()
    assert list(lent.failures().values()) == ["the pool has this very device already"]


def test_that_a_device_cannot_be_lent_is_said_once_and_that_it_is_lent_after_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lent = Lent(GPUS, 60)
    refusals = Refusals(lent, Voice())
    for state in ("starting", "failing: no memory", "starting", "failing: no memory", "failing: no driver"):
        lent.hear({"gpu-0": state, "gpu-1": "lent"})
        refusals.tell()
    assert refusals.reasons == {"no driver"}
    for _ in range(2):
        lent.hear({"gpu-0": "lent", "gpu-1": "lent"})
        refusals.tell()
    assert refusals.reasons == set()
    assert capsys.readouterr().out.splitlines() == [
        f"{GPUS[0]} cannot be lent: no memory. It is tried again.",
        f"{GPUS[0]} cannot be lent: no driver. It is tried again.",
        f"{GPUS[0]} is lent now",
    ]


def test_a_device_that_never_was_lent_need_not_leave() -> None:
    lent = Lent(GPUS, 60)
    lent.keep({"gpu-0": "lent 22:00-08:00 only", "gpu-1": "lent 22:00-08:00 only"})
    assert orders(lent) == ([], {})
    assert lent.is_settled()
    assert lent.is_drained


def test_all_leave_in_the_end_and_what_is_lost_is_started_anew() -> None:
    lent = Lent(GPUS, 60)
    lent.order()
    lent.hear({"gpu-0": "lent", "gpu-1": "lent"})
    lent.forget()
    assert not lent.is_settled()
    assert orders(lent) == (["gpu-0", "gpu-1"], {})
    lent.end("its owner takes it back", 5)
    assert orders(lent)[1] == dict.fromkeys(["gpu-0", "gpu-1"], "its owner takes it back")
    assert not lent.is_drained
    lent.hear({"gpu-0": "left", "gpu-1": "left"})
    assert lent.is_drained
    assert orders(lent) == ([], {})


@pytest.mark.parametrize(
    ("count", "limits", "sentence"),
    [
        (0, {}, "--devices 0 lends nothing"),
        (2, {"gpus": "0"}, "this machine has no GPU that can be lent"),
        (None, {"gpus": "zero"}, "--gpus zero cannot be meant"),
        (None, {"hours": "25:00-26:00"}, "25:00-26:00"),
        (None, {"memory": "lots"}, "--memory lots cannot be meant"),
        (None, {"memry": "80%"}, "Did you mean 'memory'"),
    ],
)
def test_what_cannot_be_lent_is_a_sentence(count: int | None, limits: dict[str, str], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        chosen_devices(count, Limits.parse(limits))


def test_the_hour_and_the_choice_keep_devices() -> None:
    owner = Owner(GPUS, lambda: None)
    assert owner.reasons(Limits()) == {}
    assert owner.reasons(Limits.parse({"gpus": "1"})) == {"gpu-0": "not lent"}
    # a minute of the day at most is in both
    kept = [owner.reasons(Limits.parse({"hours": hours})) for hours in ("00:00-12:00", "12:00-24:00")]
    assert sorted(map(len, kept)) == [0, 2]


# who runs what


def snapshot() -> dict[str, Any]:
    lease = {"owner": "o", "label": "train.ipynb", "kind": "trial", "devices": ["gpu-0"], "share": 1.0, "running": True}
    return {
        "time": 112.0,
        "devices": {device.id: vars(device) for device in GPUS},
        "leases": {
            "l1": {**lease, "since": 100.0, "what": "digits"},
            "l2": {**lease, "kind": "session", "devices": ["gpu-1"], "share": 0.5, "running": False, "since": 0.0},
        },
    }


def test_who_runs_what_is_said_in_words() -> None:
    assert running(snapshot()) == ["box cuda:0 (RTX 3060): train.ipynb runs a trial for digits (for 12 s)"]
    assert running(snapshot(), {"gpu-1"}) == []
    [held] = held_devices(snapshot(), {"gpu-1"})
    assert (held["kind"], held["running"], held["seconds"], held["share"]) == ("session", False, 112.0, 0.5)
    assert [span(seconds) for seconds in (0.4, 100, 150, 7500, 7200, 360000)] == [
        "0 s",
        "100 s",
        "2 min",
        "2 h 5 min",
        "2 h",
        "4 d 4 h",
    ]


# what is kept


def test_what_is_lent_is_kept(tmp_path: Path) -> None:
    assert Lends.load(tmp_path) == Lends()
    limits = Limits.parse(
        {"memory": "80%", "hours": "22:00-08:00", "max_power": "250", "when_idle": "yes", "grace": "5m"}
    )
    Lends(limits, 2, True).save(tmp_path)
    assert Lends.load(tmp_path) == Lends(limits, 2, True)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("l*.json")} == {0o600}
    (tmp_path / "limits.json").write_text('{"memory": ')
    with pytest.raises(OptionError, match=r"limits\.json cannot be read"):
        Lends.load(tmp_path)


def test_a_pool_is_found_again_by_its_name(home: Path) -> None:
    assert default_name()
    made, is_new = Kept.open("lab")
    made.port, made.public = 7410, ("lab.example.org",)
    made.save()
    made.members.invite("worker", lambda secret: "key", now=0, seconds=10)
    again, is_new_again = Kept.open("lab")
    assert (is_new, is_new_again) == (True, False)
    assert again.authority.ca == made.authority.ca
    assert (again.gate_key, again.admin_key, again.port) == (made.gate_key, made.admin_key, 7410)
    assert len(again.members.invitations) == 1
    assert default_name() == "lab"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert stat.S_IMODE((home / "pools" / "lab").stat().st_mode) == 0o700
    (home / "pools" / "lab" / "gate.json").write_text("{}")
    with pytest.raises(KalavaiError, match="the files of the pool lab"):
        Kept.open("lab")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", ".hidden", "a" * 42, "a b"])
def test_a_name_of_a_pool_is_none_of_another_directory(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be the name of a pool"):
        Kept.open(name)


# addresses


def test_addresses_of_an_invite() -> None:
    assert public_addresses(["a.example.org", "10.0.0.1:9", "[::1]:9", "::1"], 7410) == [
        "a.example.org:7410",
        "10.0.0.1:9",
        "[::1]:9",
        "[::1]:7410",
    ]
    assert own_addresses("127.0.0.1", 7410) == ["127.0.0.1:7410"]
    assert invited_addresses(["127.0.0.1"], "127.0.0.1", 9) == ["127.0.0.1:9"]
    assert all(address.endswith(":9") for address in own_addresses("0.0.0.0", 9))
    for wrong in ("", "a b", "host:", "host:99999", "http://host", "host:x"):
        with pytest.raises(OptionError, match="--public"):
            public_addresses([wrong], 7410)
    with pytest.raises(OptionError, match="--listen everywhere"):
        own_addresses("everywhere", 7410)
    names = ["no-such-name.invalid", "a..b:5", "127.0.0.1:5", "[::1]:7", "localhost"]
    assert asyncio.run(unknown_names(names)) == ["no-such-name.invalid", "a..b"]


# the socket


@contextmanager
def listening(directory: Path) -> Iterator[None]:
    """A socket that answers with what it was asked, in a thread of its own."""

    async def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["op"] == "refuse":
            raise OptionError("not that")
        return {"asked": asked, "text": "x" * int(asked.get("length", 0))}

    async def serve() -> None:
        server = await listen(directory, answer)
        is_up.set()
        await asyncio.get_running_loop().run_in_executor(None, is_over.wait)
        server.close()

    is_up, is_over = Event(), Event()
    thread = Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert is_up.wait(10)
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("depth", [1, 8])
def test_the_socket_answers_its_user_however_deep_it_is(tmp_path: Path, depth: int) -> None:
    directory = tmp_path.joinpath(*["a-rather-long-name"] * depth)
    assert not is_running(directory)
    with pytest.raises(NotRunning):
        ask(directory, "status")
    with listening(directory):
        assert stat.S_IMODE((directory / NAME).stat().st_mode) == 0o600
        assert is_running(directory)
        assert ask(directory, "status", length=1 << 20)["text"] == "x" * (1 << 20)
        with pytest.raises(KalavaiError, match="not that"):
            ask(directory, "refuse")
    with pytest.raises(NotRunning):
        ask(directory, "status")


@pytest.mark.parametrize(
    "line", [b"\n", b"{\n", b"[]\n", b'{"op": "refuse"', b"\xff\xfe\n", b"[" * 5000 + b"\n", b"{}\n"]
)
def test_junk_at_the_socket_ends_nobody(tmp_path: Path, line: bytes) -> None:
    with listening(tmp_path):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / NAME))
            caller.sendall(line)
            caller.shutdown(socket.SHUT_WR)
            assert "error" in json.loads(caller.makefile().readline())
        assert ask(tmp_path, "status")["asked"] == {"op": "status"}


# its end


def test_an_end_waits_and_a_second_one_does_not() -> None:
    async def course() -> list[bool]:
        async def never() -> bool:
            return False

        async def at_once() -> bool:
            return True

        ending = Ending()
        ending.ask()
        first = [ending.now.is_set(), await ending.drain(10, at_once), await ending.drain(0.01, never)]
        asyncio.get_running_loop().call_later(0.01, ending.ask)
        return [*first, await ending.drain(60, never), ending.now.is_set()]

    assert asyncio.run(course()) == [False, True, False, False, True]


# a service


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it was told; exits with what is in ``status``."""
    told = tmp_path / "told"
    script = tmp_path / "bin" / "systemctl"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {told}\n[ ! -e {tmp_path}/broken ] || {{ echo no bus >&2; exit 1; }}\n')
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return told


def test_a_service_is_installed_and_removed(systemctl: Path, home: Path) -> None:
    service = Service("lab", ("join", "abc"), 60)
    said = "\n".join(service.install())
    text = service.path.read_text()
    assert f"ExecStart={sys.executable} -m kalavai_nb join abc\n" in text
    assert f"Environment=KALAVAI_HOME={home}\n" in text
    assert "Restart=always\n" in text
    assert "TimeoutStopSec=90\n" in text
    assert systemctl.read_text().splitlines() == ["--user daemon-reload", "--user enable --now kalavai-nb-lab.service"]
    assert "loginctl enable-linger" in said
    assert f"rm {service.path}" in said
    assert service.remove() == [f"removed {service.path}"]
    assert not service.path.exists()
    assert service.remove() == []


def test_without_systemd_it_says_what_to_type(systemctl: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    said = "\n".join(Service("lab", ("join", "abc"), 60).install())
    assert "systemd could not be told (no bus)" in said
    assert "  systemctl --user enable --now kalavai-nb-lab.service" in said


def test_words_of_a_unit_are_quoted() -> None:
    text = Service("100% mine", ("join", 'a "b" $HOME %h'), 60).text()
    assert 'join "a \\"b\\" $$HOME %%h"' in text
    assert "to the pool 100%% mine (" in text
    assert Service("../a b").name == "kalavai-nb-.._a_b.service"
