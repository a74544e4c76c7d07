"""The verbs that make pools, lend to them and look after them: real processes, each machine a home of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import kalavai_nb as kn
from kalavai_nb import cli
from kalavai_nb.invites import Invite

KALAVAI = (sys.executable, "-m", "kalavai_nb")
LIMIT_SECONDS = 90.0
Said = dict[str, Any]


class Verb:
    """A verb that goes on. ``said`` are its lines of JSON so far."""

    def __init__(self, home: Path, *words: str) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "KALAVAI_HOME": str(home)}
        with open(home / "errors", "ab") as errors:
            self.process = subprocess.Popen(
                [*KALAVAI, *words, "--json"],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=home,
                text=True,
                # Ctrl-C for the test is none for it
                start_new_session=True,
            )
        self.said: list[Said] = []
        self._more = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait_for(self, event: str, since: int = 0, **facts: Any) -> Said:
        """The first line of this event, and with these facts, after so many others."""
        found: list[Said] = []

        def is_there() -> bool:
            fitting = [s for s in self.said[since:] if s["event"] == event and facts.items() <= s.items()]
            found.extend(fitting[:1])
            return bool(fitting) or self.process.poll() is not None

        with self._more:
            self._more.wait_for(is_there, LIMIT_SECONDS)
        assert found, f"no {event!r} in {self.said}; {(self.home / 'errors').read_text()[-2000:]}"
        return found[0]

    def texts(self) -> str:
        return "\n".join(said["text"] for said in self.said)

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit status, after this signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(LIMIT_SECONDS)
        self._listener.join()
        return status

    def _listen(self) -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                with self._more:
                    self.said.append(json.loads(line))
                    self._more.notify_all()
        with self._more:
            self._more.notify_all()


def ask(home: Path, *words: str, status: int = 0, given: str = "") -> Any:
    """What a verb says with ``--json``; where it has another exit status, its sentence."""
    environment = {**os.environ, "KALAVAI_HOME": str(home)}
    done = subprocess.run(
        [*KALAVAI, *words, "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT_SECONDS,
        input=given,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def tell(home: Path, *words: str) -> str:
    """What it says to people."""
    environment = {**os.environ, "KALAVAI_HOME": str(home)}
    return subprocess.run(
        [*KALAVAI, *words], capture_output=True, text=True, env=environment, timeout=LIMIT_SECONDS, check=True
    ).stdout


def until(is_it: Callable[[], bool], verb: Verb | None = None) -> None:
    """Look again and again: what is waited for here says nothing when it comes."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_it():
        assert time.monotonic() < deadline, verb and verb.texts()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def head(homes: Path) -> Iterator[Verb]:
    verb = Verb(homes / "head", "start", "lab", "--no-devices", "--listen", "127.0.0.1", "--grace", "1s")
    verb.wait_for("ready")
    yield verb
    assert verb.end() == 0


@pytest.fixture(scope="module")
def pool(head: Verb, homes: Path) -> Iterator[kn.Pool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KALAVAI_HOME", str(homes / "user"))
        pool = kn.Pool(head.wait_for("ready")["invites"]["user"]["invite"], quiet=True)
        yield pool
        pool.close()


@pytest.fixture(scope="module")
def lender(head: Verb, homes: Path) -> Iterator[Verb]:
    invite = head.wait_for("ready")["invites"]["worker"]["invite"]
    verb = Verb(homes / "lender", "join", invite, "--devices", "2", "--name", "gpu-box", "--grace", "30s")
    verb.wait_for("lent")
    yield verb
    verb.end(signal.SIGTERM)


def joins(pool: kn.Pool) -> int:
    """How often a device has joined."""
    return sum(event.kind == "joined" and " cpu:" in event.text for event in pool.snapshot().events)


def until_it_is_there(path: str) -> str:
    import pathlib
    import time

    pathlib.Path(f"{path}.begun").touch()
    while not pathlib.Path(path).exists():
        time.sleep(0.05)
    return path


# wrong input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["join", "kalavai://x"], "the invite is cut off"),
        (["join", "https://example.org/abc"], "this is no invite"),
        (["join"], "wanted an invite or the name of a pool joined before"),
        (["join", "-"], "wanted an invite on standard input, got nothing"),
        (["join", "lab"], "there is no pool that this machine is lent to; kalavai-nb join INVITE lends it"),
        (["join", "lab", "--hours", "late"], "there is no day 'late'"),
        (["join", "lab", "--max-power", "much"], "--max-power much cannot be meant"),
        (["join", "lab", "--gpus", "0"], "this machine has no GPU that can be lent"),
        (["join", "lab", "--devices", "0"], "--devices 0 lends nothing"),
        (["join", "lab", "--detach", "--install-service"], "give one of them"),
        (["start", "../lab"], "cannot be the name of a pool"),
        (["start", "lab", "--port", "70000"], "--port 70000 is no port"),
        (["start", "lab", "--public", "http://lab"], "--public http://lab cannot be meant"),
        (["start", "lab", "--listen", "everywhere"], "--listen everywhere is no address"),
        (["start", "lab", "--expires", "soon"], "--expires soon cannot be meant"),
        (["start", "lab", "--uses", "0"], "--uses 0 cannot be meant"),
        (["start", "lab", "--no-devices", "--devices", "2"], "cannot both be meant"),
        (["invite"], "there is no pool kept on this machine; kalavai-nb start makes one"),
        (["invite", "--role", "boss"], "invalid choice: 'boss'"),
        (["revoke"], "say whom to revoke"),
        (["revoke", "x", "--list"], "say whom to revoke"),
        (["leave"], "there is no pool that this machine is lent to"),
        (["stop", "lab"], "there is no pool kept on this machine"),
        (["status"], "no pool is kept on this machine or lent to by it"),
        (["status", "lab"], "no pool called 'lab'"),
        (["limits", "--memory", "80%"], "there is no pool that this machine is lent to"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KALAVAI_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["start", "join", "invite", "revoke", "limits", "leave", "stop"])
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert "examples:\n  kalavai-nb" in text
    assert "--json" in text


def test_ctrl_d_is_no_invite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def leave(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", leave)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert cli.main(["join"]) == 2
    assert "got nothing" in capsys.readouterr().err


def test_an_invite_that_is_asked_for_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALAVAI_HOME", str(tmp_path))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "KALAVAI_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*KALAVAI, "join"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        while b"invite" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"kalavai://x\n")
        with contextlib.suppress(OSError):  # the terminal's end
            while more := os.read(ours, 1000):
                shown += more
    os.close(ours)
    assert process.returncode == 2
    assert b"the invite is cut off" in shown
    assert b"kalavai://x" not in shown.replace(b"kalavai://x, got", b"")


# a pool and a machine that is lent to it


def test_start_prints_what_friends_type(head: Verb) -> None:
    ready = head.wait_for("ready")
    text = ready["text"]
    for role in ("worker", "user"):
        invite = Invite.decode(ready["invites"][role]["invite"])
        assert (invite.pool, invite.role) == ("lab", role)
        assert invite.addresses == (f"127.0.0.1:{ready['port']}",)
    assert f"kalavai-nb join {ready['invites']['worker']['invite']}" in text
    assert f'pool = kn.Pool("{ready["invites"]["user"]["invite"]}")' in text
    assert "Others cannot reach this machine" in text
    again = ask(head.home, "start", "lab", status=2)
    assert "the pool lab runs already" in again


def test_both_sides_say_who_runs_what(head: Verb, lender: Verb, pool: kn.Pool, tmp_path: Path) -> None:
    assert len(pool.devices) == 2
    go = tmp_path / "go"
    sweep = pool.map(until_it_is_there, [str(go)], name="waits", show=False)
    until(lambda: Path(f"{go}.begun").exists())
    [lent] = ask(lender.home, "status")
    [held] = lent["held"]
    assert (held["kind"], held["what"], held["running"]) == ("trial", "sweep waits", True)
    assert (lent["kind"], lent["link"]["up"], lent["running"]) == ("joined", True, True)
    text = tell(lender.home, "status")
    assert "this machine is lent to it" in text
    assert "runs a trial for sweep waits (for" in text
    [hosted] = ask(head.home, "status")
    assert [each["what"] for each in hosted["held"]] == ["sweep waits"]
    assert "runs a trial for sweep waits (for" in tell(head.home, "status")
    go.touch()
    assert sweep.values == [str(go)]


def test_lists(head: Verb, lender: Verb) -> None:
    assert [(row["pool"], row["part"], row["running"]) for row in ask(head.home, "list")] == [("lab", "hosted", True)]
    assert [(row["part"], row["running"]) for row in ask(lender.home, "list")] == [("joined", True)]
    assert "this machine is lent to it" in tell(lender.home, "list")
    listed = ask(head.home, "revoke", "--list")
    assert [(each["label"], each["role"], each["connected"]) for each in listed["members"]][:1] == [
        ("gpu-box", "worker", 1)
    ]
    assert not any("key" in each for each in listed["members"])
    assert "gpu-box" in tell(head.home, "revoke", "--list")
    again = ask(lender.home, "join", "lab", status=2)
    assert "this machine is lent to lab already" in again


def test_limits_change_while_it_is_lent(lender: Verb, pool: kn.Pool) -> None:
    assert "all devices" in tell(lender.home, "limits")
    changed = ask(lender.home, "limits", "--memory", "50%")
    assert changed["limits"]["memory"] == "50%"
    until(lambda: {device.limits for device in pool.devices} == {"50 % of memory"})
    assert "--memory lots cannot be meant" in ask(lender.home, "limits", "--memory", "lots", status=2)
    # hours that are over: taken back, and lent again when there are none
    hour = time.localtime().tm_hour
    begin = (hour + 4) % 24
    ask(lender.home, "limits", "lab", "--hours", f"{begin:02d}:00-{(begin + 2) % 24:02d}:00", "--memory", "none")
    until(lambda: pool.devices == [])
    until(lambda: {each["state"] for each in ask(lender.home, "status")[0]["devices"].values()} == {"kept"})
    ask(lender.home, "limits", "--hours", "none")
    until(lambda: len(pool.devices) == 2)
    assert {device.limits for device in pool.devices} == {""}
    kept = json.loads(next((lender.home / "joined").glob("*/limits.json")).read_text())
    assert (kept["hours"], kept["memory"]) == (None, None)


def test_what_dies_on_the_machine_is_started_again(lender: Verb, pool: kn.Pool) -> None:
    before = joins(pool)
    [machine] = psutil.Process(lender.process.pid).children()
    machine.kill()
    said = lender.wait_for("machine")["text"]
    assert said.startswith("the process of this machine's workers ended: it was killed")
    until(lambda: joins(pool) == before + 2)
    assert len(pool.devices) == 2


def test_ctrl_c_lets_a_trial_end(lender: Verb, pool: kn.Pool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    sweep = pool.map(until_it_is_there, [str(go)], name="drained", show=False)
    until(lambda: Path(f"{go}.begun").exists())
    lender.process.send_signal(signal.SIGINT)
    assert "runs a trial for sweep drained" in lender.wait_for("running")["text"]
    assert "Ctrl-C again ends it now" in lender.wait_for("leaving")["text"]
    [status] = ask(lender.home, "status")
    assert status["is_leaving"]
    go.touch()
    assert sweep.values == [str(go)]
    assert lender.wait() == 0
    assert psutil.pid_exists(lender.process.pid) is False
    assert "kalavai-nb join lab" in tell(lender.home, "status")


def test_it_comes_again_without_an_invite_and_a_second_ctrl_c_ends_it_now(
    lender: Verb, pool: kn.Pool, tmp_path: Path
) -> None:
    begun = time.monotonic()
    again = Verb(lender.home, "join", "lab")
    assert len(again.wait_for("lent")["devices"]) == 2
    assert time.monotonic() - begun < LIMIT_SECONDS
    path = tmp_path / "never"
    sweep = pool.map(until_it_is_there, [str(path)], name="cut", show=False)
    until(lambda: Path(f"{path}.begun").exists())
    again.process.send_signal(signal.SIGINT)
    again.wait_for("leaving")
    assert again.end() == 0
    until(lambda: pool.devices == [])
    sweep.stop()


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Ids of processes in the background that are ended with the test."""
    ids: list[int] = []
    yield ids
    for id in filter(psutil.pid_exists, ids):
        psutil.Process(id).terminate()


def test_in_the_background_over_the_loss_of_the_gate(homes: Path, ended: list[int]) -> None:
    head, lender = homes / "den", homes / "guest"
    ready = ask_new(head, "start", "den", "--no-devices", "--detach", "--listen", "127.0.0.1")
    ended.append(ready["pid"])
    # read, so that no list of processes shows it
    invite = ready["invites"]["worker"]["invite"]
    joined = ask_new(lender, "join", "-", "--devices", "1", "--detach", given=f"{invite}\n")
    ended.append(joined["pid"])
    assert joined["event"] == "lent"
    psutil.Process(ready["pid"]).kill()
    again = Verb(head, "start", "den", "--no-devices", "--public", "no-such-name.invalid")
    ended.append(again.process.pid)
    facts = again.wait_for("ready")
    # others may find it
    assert "no address of this name is found from here" in again.wait_for("note")["text"]
    assert facts["addresses"][0] == f"no-such-name.invalid:{facts['port']}"
    assert [facts[name] for name in ("port", "pool_id")] == [ready[name] for name in ("port", "pool_id")]
    until(lambda: len(ask(head, "status")[0]["snapshot"]["devices"]) == 1)
    # put out for good, while it is there
    assert [member["label"] for member in ask(head, "revoke", next(iter_members(head)))["revoked"]]
    until(lambda: not psutil.pid_exists(joined["pid"]))
    assert "revoked" in Path(joined["log"]).read_text()
    assert "revoked" in ask(lender, "join", "den", status=2)
    assert ask(lender, "leave", "den", "--forget")["forgotten"]
    assert ask(lender, "list") == []
    assert ask(head, "stop", "den", "--now", "--forget")["forgotten"]
    assert again.wait() == 0
    assert ask(head, "list") == []


def ask_new(home: Path, *words: str, given: str = "") -> Any:
    home.mkdir()
    return ask(home, *words, given=given)


def iter_members(home: Path) -> Iterator[str]:
    return (member["id"] for member in ask(home, "revoke", "--list")["members"])
