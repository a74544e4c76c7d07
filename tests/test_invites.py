"""Invites that survive a chat message, and the list of those who came by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kalavai_nb.errors import InviteError, KalavaiError, OptionError
from kalavai_nb.invites import SCHEME, Invite, split_address
from kalavai_nb.members import Members, Refused

NOW = 1_000_000.0
INVITE = Invite("ada's lab", ("192.168.1.20:8912", "[fd00::1]:8912"), "ab" * 32, "cd" * 16, "worker", 1.8e9)
TEXT = INVITE.encode()


# as text


def test_an_invite_comes_back() -> None:
    assert TEXT.startswith(SCHEME)
    assert Invite.decode(TEXT) == INVITE


def test_an_invite_is_text_that_nothing_breaks_and_that_is_short() -> None:
    body = TEXT.removeprefix(SCHEME)
    assert set(body) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert len(TEXT) < 250


@pytest.mark.parametrize(
    "text",
    [
        "\n   ".join(TEXT[start : start + 70] for start in range(0, len(TEXT), 70)) + "\r\n\t",
        TEXT[:100] + "\u00a0" + TEXT[100:],
        f'"{TEXT}".',
        f"`{TEXT}`",
        f"<{TEXT}>,",
        f"\u201c{TEXT}\u201d",
    ],
)
def test_an_invite_survives_what_chats_and_hands_put_around_it(text: str) -> None:
    assert Invite.decode(text) == INVITE


def test_an_invite_that_is_cut_off_anywhere_is_told_to_be_so() -> None:
    for length in range(len(SCHEME), len(TEXT)):
        with pytest.raises(InviteError, match=r"the invite is cut off: .*Copy all of it again") as error:
            Invite.decode(TEXT[:length])
        assert length < len(SCHEME) + 10 or f"{length} of {len(TEXT)} characters" in str(error.value)


def test_a_wrong_character_anywhere_is_told_from_a_cut() -> None:
    for position in range(len(SCHEME), len(TEXT)):
        for other in "A-z" if TEXT[position] not in "A-z" else "b":
            with pytest.raises(InviteError) as error:
                Invite.decode(TEXT[:position] + other + TEXT[position + 1 :])
            # but for the length itself, a cut is not what it is called
            assert "damaged" in str(error.value) or 10 <= position - len(SCHEME) + 10 < 20


def test_an_invite_without_one_character_in_its_middle_is_refused() -> None:
    for position in range(len(TEXT)):
        with pytest.raises(InviteError):
            Invite.decode(TEXT[:position] + TEXT[position + 1 :])


def test_text_that_follows_is_told() -> None:
    with pytest.raises(InviteError, match="4 characters too many after the invite"):
        Invite.decode(TEXT + "AbCd")
    with pytest.raises(InviteError, match="'é' cannot be in it"):
        Invite.decode(TEXT[:40] + "é" + TEXT[41:])


@pytest.mark.parametrize(
    "text", ["hello", "https://example.com/invite", "tls://10.0.0.1:8786", "größe", "a.b", "é" * 40, ""]
)
def test_text_that_is_no_invite_is_told_what_was_wanted(text: str) -> None:
    with pytest.raises(
        InviteError, match=f"this is no invite: wanted text that starts with {SCHEME}, got '{text[:24]}"
    ):
        Invite.decode(text)


@pytest.mark.parametrize(
    "changed", [{"role": "boss"}, {"addresses": ()}, {"addresses": ("nowhere",)}, {"expires": float("inf")}]
)
def test_an_invite_for_what_is_not_known_is_refused(changed: dict[str, object]) -> None:
    try:
        text = replace(INVITE, **changed).encode()  # type: ignore[arg-type]
    except OverflowError:
        return
    with pytest.raises(InviteError, match="Ask for a new one"):
        Invite.decode(text)


def test_errors_are_value_errors_of_ours() -> None:
    assert issubclass(InviteError, ValueError)
    assert issubclass(InviteError, KalavaiError)


@pytest.mark.parametrize("text", ["host", "host:", ":80", "host:0", "host:65536", "host:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted host:port"):
        split_address(text)
    assert split_address("[fd00::1]:80") == ("fd00::1", 80)


# who came by them


def key_of(secret: str) -> str:
    return f"ssh-ed25519 {secret}"


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path / "members.json")


def invited(members: Members, uses: int = 1, stay_seconds: float = 0.0) -> str:
    invitation, _ = members.invite("worker", key_of, now=NOW, seconds=60, uses=uses, stay_seconds=stay_seconds)
    return invitation.id


def test_an_invite_is_good_for_so_many(members: Members) -> None:
    id = invited(members, uses=2)
    first = members.enrol(id, "key-1", "box", NOW)
    assert members.enrol(id, "key-1", "box", NOW) == first, "an answer that was lost on its way is no second use"
    members.enrol(id, "key-2", "box", NOW)
    with pytest.raises(Refused, match="for 2 times, and has been used"):
        members.enrol(id, "key-3", "box", NOW)


def test_an_invite_ends_with_its_time(members: Members) -> None:
    id = invited(members)
    with pytest.raises(Refused, match="the invite expired 2 min ago"):
        members.enrol(id, "key", "box", NOW + 60 + 120)
    assert members.members == []


def test_who_stays_for_a_time_is_refused_after_it(members: Members) -> None:
    member = members.enrol(invited(members, stay_seconds=3600), "key", "box", NOW)
    member.check(NOW + 3599)
    with pytest.raises(Refused, match="this membership ended 2 h ago"):
        member.check(NOW + 3600 + 7200)


@pytest.mark.parametrize("who", ["label", "id", "invite"])
def test_revoked_by_label_id_or_invite(members: Members, who: str) -> None:
    id = invited(members, uses=2)
    member = members.enrol(id, "key", "box", NOW)
    name = {"label": "box", "id": member.id, "invite": id}[who]
    assert [gone.id for gone in members.revoke(name)] == [member.id]
    known = members.member(member.id)
    assert known is not None
    with pytest.raises(Refused, match="revoked"):
        known.check(NOW)
    if who == "invite":
        with pytest.raises(Refused, match="the invite was revoked"):
            members.enrol(id, "another", "box", NOW)
    with pytest.raises(OptionError, match=r"nobody to revoke is called 'box'"):
        members.revoke("box")


def test_a_key_is_one_member_only(members: Members) -> None:
    members.enrol(invited(members), "key", "box", NOW)
    other, _ = members.invite("user", key_of, now=NOW, seconds=60)
    with pytest.raises(Refused, match="belongs to another member"):
        members.enrol(other.id, "key", "box", NOW)


def test_an_invite_that_nobody_made_is_refused(members: Members) -> None:
    with pytest.raises(Refused, match="not known here"):
        members.enrol("i-00000000", "key", "box", NOW)


@pytest.mark.parametrize("wrong", [{"role": "boss"}, {"uses": 0}, {"seconds": 0.0}, {"stay_seconds": -1.0}])
def test_an_invite_that_cannot_be_meant_is_refused(members: Members, wrong: dict[str, object]) -> None:
    options: dict[str, object] = {"role": "user", "now": NOW, "seconds": 60.0, **wrong}
    with pytest.raises(OptionError):
        members.invite(key_of=key_of, **options)  # type: ignore[arg-type]


def test_the_list_outlives_the_process_and_nobody_else_reads_it(members: Members, tmp_path: Path) -> None:
    id = invited(members, uses=2)
    member = members.enrol(id, "key", "box", NOW)
    path = tmp_path / "members.json"
    assert path.stat().st_mode & 0o777 == 0o600
    again = Members(path)
    assert (again.members, again.invitations) == (members.members, members.invitations)
    assert again.enrol(id, "key", "box", NOW) == member
    secrets = json.loads(path.read_text())["invites"][0]
    assert set(secrets) == {"id", "key", "role", "expires", "uses", "used", "stay_seconds", "revoked"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "invites": [{}], "members": []}'])
def test_a_list_that_cannot_be_read_is_not_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "members.json"
    path.write_text(text)
    with pytest.raises(InviteError, match="Mend it, or move it away"):
        Members(path)
    assert path.read_text() == text


def test_old_invites_are_forgotten(members: Members) -> None:
    old = invited(members)
    members.invite("user", key_of, now=NOW + 40 * 86400, seconds=60)
    assert members.invitation(old) is None
