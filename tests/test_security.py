"""Certificates of a pool, and invites that survive a chat message."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kalavai_nb.errors import InviteError, KalavaiError
from kalavai_nb.security import SCHEME, Authority, Identity, Invite, parse_seconds

if TYPE_CHECKING:
    from cryptography import x509


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("lab")


@pytest.fixture(scope="module")
def invite(authority: Authority) -> Invite:
    identity = authority.issue("worker:box", listens=False)
    return Invite("lab", "tls://10.0.0.1:8786", "worker", time.time() + 3600, identity)


def certificate(pem: str) -> x509.Certificate:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())


def common_name(name: x509.Name) -> str:
    return str(name.rdns[0].rfc4514_string()).removeprefix("CN=")


def seconds_left(identity: Identity) -> float:
    return certificate(identity.certificate).not_valid_after_utc.timestamp() - time.time()


def usages(identity: Identity) -> set[str]:
    from cryptography.x509 import ExtendedKeyUsage

    extension = certificate(identity.certificate).extensions.get_extension_for_class(ExtendedKeyUsage)
    return {usage._name for usage in extension.value}


def handshake(directory: Path, server: Identity, client: Identity) -> None:
    """TLS between two members, as Dask sets it up, in memory. Raises SSLError where one does not trust the other."""
    ends = []
    for number, (identity, purpose) in enumerate(
        [(server, ssl.Purpose.CLIENT_AUTH), (client, ssl.Purpose.SERVER_AUTH)]
    ):
        context = ssl.create_default_context(purpose, cadata=identity.ca)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        if hasattr(ssl, "VERIFY_X509_STRICT"):
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        pem = directory / f"{number}.pem"
        pem.write_text(identity.certificate + identity.key)
        context.load_cert_chain(pem)
        ends.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sockets = [
        ends[1].wrap_bio(to_client, to_server, server_side=False),
        ends[0].wrap_bio(to_server, to_client, server_side=True),
    ]
    while sockets:
        for socket in list(sockets):
            try:
                socket.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sockets.remove(socket)


# certificates


def test_a_certificate_is_signed_by_the_pools_authority(authority: Authority) -> None:
    identity = authority.issue("head", listens=True)
    issued, ca = certificate(identity.certificate), certificate(identity.ca)
    issued.verify_directly_issued_by(ca)
    assert common_name(issued.subject) == "head"
    assert common_name(ca.subject) == common_name(issued.issuer) == "kalavai pool lab"


def test_the_authority_may_sign_members_only(authority: Authority) -> None:
    from cryptography.x509 import BasicConstraints

    ca = certificate(authority.issue("head", listens=True).ca)
    constraints = ca.extensions.get_extension_for_class(BasicConstraints)
    assert constraints.critical
    assert constraints.value == BasicConstraints(ca=True, path_length=0)


def test_every_certificate_has_a_key_and_number_of_its_own(authority: Authority) -> None:
    first, second = (authority.issue("user:ada", listens=False) for _ in range(2))
    assert first.ca == second.ca
    assert first.key != second.key
    assert certificate(first.certificate).serial_number != certificate(second.certificate).serial_number


def test_a_key_belongs_to_its_certificate(authority: Authority) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    identity = authority.issue("head", listens=True)
    key = load_pem_private_key(identity.key.encode(), password=None)
    assert key.public_key() == certificate(identity.certificate).public_key()


def test_two_pools_of_one_name_do_not_trust_each_other(authority: Authority) -> None:
    from cryptography.exceptions import InvalidSignature

    other = Authority("lab").issue("head", listens=True)
    ours = certificate(authority.issue("head", listens=True).ca)
    with pytest.raises(InvalidSignature):
        certificate(other.certificate).verify_directly_issued_by(ours)


def test_a_certificate_lives_for_thirty_days(authority: Authority) -> None:
    assert seconds_left(authority.issue("head", listens=True)) == pytest.approx(30 * 86400, abs=60)


def test_a_certificate_lives_as_long_as_it_is_told(authority: Authority) -> None:
    assert seconds_left(authority.issue("worker:box", listens=False, seconds=7200)) == pytest.approx(7200, abs=60)


def test_a_certificate_is_valid_on_machines_whose_clock_is_a_little_slow(authority: Authority) -> None:
    begin = certificate(authority.issue("head", listens=True).certificate).not_valid_before_utc
    assert time.time() - begin.timestamp() == pytest.approx(300, abs=60)


def test_a_long_name_fits_a_certificate(authority: Authority) -> None:
    identity = authority.issue("worker:" + "x" * 100, listens=False)
    assert len(common_name(certificate(identity.certificate).subject)) == 64


def test_only_who_listens_may_be_a_server(authority: Authority) -> None:
    assert usages(authority.issue("head", listens=True)) == {"serverAuth", "clientAuth"}
    assert usages(authority.issue("user:ada", listens=False)) == {"clientAuth"}


def test_members_trust_the_head(authority: Authority, tmp_path: Path) -> None:
    head, user = authority.issue("head", listens=True), authority.issue("user:ada", listens=False)
    handshake(tmp_path, server=head, client=user)


def test_a_member_cannot_pose_as_the_head(authority: Authority, tmp_path: Path) -> None:
    user, other = authority.issue("user:ada", listens=False), authority.issue("user:bob", listens=False)
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(tmp_path, server=user, client=other)


def test_strangers_are_refused(authority: Authority, tmp_path: Path) -> None:
    head = authority.issue("head", listens=True)
    stranger = replace(Authority("lab").issue("user:eve", listens=False), ca=head.ca)
    with pytest.raises(ssl.SSLError):
        handshake(tmp_path, server=head, client=stranger)


def test_an_expired_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    head, late = authority.issue("head", listens=True), authority.issue("user:ada", listens=False, seconds=-60)
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(tmp_path, server=head, client=late)


# invites


def test_an_invite_comes_back(invite: Invite) -> None:
    text = invite.encode()
    assert text.startswith(SCHEME)
    assert Invite.decode(text) == invite


def test_an_invite_is_text_that_nothing_breaks(invite: Invite) -> None:
    body = invite.encode().removeprefix(SCHEME)
    assert set(body) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_an_invite_fits_a_chat_message(invite: Invite) -> None:
    assert len(invite.encode()) < 2000


def test_an_invite_survives_the_lines_and_spaces_of_a_chat_message(invite: Invite) -> None:
    text = invite.encode()
    lines = "\n   ".join(text[start : start + 70] for start in range(0, len(text), 70))
    assert Invite.decode(f"  {lines}\r\n\t") == invite
    assert Invite.decode(text[:100] + "\u00a0" + text[100:]) == invite


@pytest.mark.parametrize("missing", range(1, 9))
def test_an_invite_that_is_cut_off_is_told_to_be_so(invite: Invite, missing: int) -> None:
    with pytest.raises(InviteError, match=r"damaged or cut off.*Copy all of it again"):
        Invite.decode(invite.encode()[:-missing])


@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 50])
def test_the_beginning_of_an_invite_is_told_to_be_cut_off(invite: Invite, length: int) -> None:
    with pytest.raises(InviteError, match="damaged or cut off"):
        Invite.decode(invite.encode()[: len(SCHEME) + length])


def test_an_invite_with_a_changed_letter_is_damaged(invite: Invite) -> None:
    text = invite.encode()
    changed = text[:200] + ("A" if text[200] != "A" else "B") + text[201:]
    with pytest.raises(InviteError, match="damaged or cut off"):
        Invite.decode(changed)


@pytest.mark.parametrize(
    "text", ["hello", "https://example.com/invite", "tls://10.0.0.1:8786", "größe", "a.b", "é" * 40]
)
def test_text_that_is_no_invite_is_told_what_was_wanted(text: str) -> None:
    with pytest.raises(
        InviteError, match=f"this is no invite: wanted text that starts with {SCHEME}, got '{text[:24]}'"
    ):
        Invite.decode(text)


def test_an_invite_of_other_fields_cannot_be_used() -> None:
    import base64
    import json
    import zlib

    packed = zlib.compress(json.dumps({"pool": "lab"}).encode())
    raw = zlib.crc32(packed).to_bytes(4, "big") + packed
    with pytest.raises(InviteError):
        Invite.decode(SCHEME + base64.urlsafe_b64encode(raw).decode())


def test_an_expired_invite_says_since_when_and_what_to_do(invite: Invite) -> None:
    old = replace(invite, expires=time.time() - 7200)
    with pytest.raises(InviteError) as error:
        Invite.decode(old.encode())
    assert str(error.value) == "the invite to lab expired 2:00:00 ago; ask for a new one with pool.invite()"


def test_invite_errors_are_value_errors_of_ours() -> None:
    assert issubclass(InviteError, ValueError)
    assert issubclass(InviteError, KalavaiError)


# times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("30s", 30),
        ("10m", 600),
        ("2h", 7200),
        ("1.5d", 129600),
        ("1w", 604800),
        (" 10 m ", 600),
        ("0", 0),
        (5, 5),
        (0.25, 0.25),
        (1e-05, 0.00001),
        (1e20, 1e20),
    ],
)
def test_times_are_seconds(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1", -1, "1h30m", "ten", "10 minutes", "1,5h", "10M", float("nan"), True])
def test_what_is_no_time_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match="wanted a time such as 30s, 10m or 2h, got"):
        parse_seconds(text)
