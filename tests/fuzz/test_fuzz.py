"""A slice of what ``make fuzz`` does, and the surfaces whose inputs hypothesis can look for."""

from __future__ import annotations

import contextlib
import json
import socket
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalavai_nb.errors import InviteError
from kalavai_nb.frames import PREFIX, receive
from kalavai_nb.invites import Invite

from .inbox import entries
from .invites import Invites, sealed
from .running import Failure, report, run
from .surfaces import SHARES, SURFACES, measure

SLICE = 1500


@pytest.mark.parametrize("name", SURFACES)
def test_no_input_crashes_hangs_or_fills_the_memory(name: str) -> None:
    outcome = measure(name, round(SLICE / SHARES.get(name, 1)), 1)
    print(outcome.line())
    assert outcome.failures == []
    assert outcome.inputs == SLICE
    assert len(outcome.words) > 1, "nothing but refused, or nothing but taken: these inputs show nothing"


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_sealed_as_an_invite_is_one_or_is_refused(content: bytes) -> None:
    for body in (content, bytes(48) + zlib.compress(content)):
        Invites().take(sealed(body))
    with pytest.raises(InviteError):
        Invite.decode(content.decode("latin-1"))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=10), JSON, max_size=5))
def test_what_is_no_entry_is_not_shown(said: dict[str, object]) -> None:
    with entries() as surface:
        assert surface.take(json.dumps(said).encode()) == "refused"


def test_memory_is_not_taken_for_what_is_only_announced() -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        theirs.sendall(PREFIX.pack(1, 1 << 32) + b"\x80")
        theirs.close()
        with pytest.raises(ConnectionError):
            receive(ours)


class Bad:
    """A surface with every fault."""

    name = "bad"

    def __init__(self) -> None:
        self.held: list[bytearray] = []

    def make(self, mutator: object) -> int:
        return len(self.held)

    def take(self, given: int) -> str:
        self.held.append(bytearray(b"x" * (1 << 20)))
        if given % 2:
            raise ValueError("odd")
        return "even"


def test_faults_are_found_and_written_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    @contextlib.contextmanager
    def opened() -> Iterator[Bad]:
        yield Bad()

    outcome = run(opened, 200, 7)
    assert [failure.what for failure in outcome.failures] == ["ValueError: odd", outcome.failures[1].what]
    assert "memory grew" in outcome.failures[1].what
    assert outcome.failed == 101
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    report([outcome], path)
    [first, _] = json.loads(path.read_text())
    assert Failure(**first) == outcome.failures[0]
    assert first["given"] == "101"
