"""Certificates of a pool, and times."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kalavai_nb.identity import Identity
from kalavai_nb.security import CLOCK_SECONDS, Authority, dask_security, new_key, parse_seconds, public_pem

if TYPE_CHECKING:
    from cryptography import x509


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("lab")


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


def test_a_certificate_is_valid_on_machines_whose_clock_is_slow(authority: Authority) -> None:
    begin = certificate(authority.issue("head", listens=True).certificate).not_valid_before_utc
    assert time.time() - begin.timestamp() == pytest.approx(CLOCK_SECONDS, abs=60)
    assert CLOCK_SECONDS > 2 * 3600


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


def test_an_authority_is_kept_and_found_again(authority: Authority, tmp_path: Path) -> None:
    again = Authority.load(authority.dump())
    assert again.ca == authority.ca
    head, user = authority.issue("head", listens=True), again.issue("user:ada", listens=False)
    handshake(tmp_path, server=head, client=user)


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_an_authority_that_was_cut_off_is_none(authority: Authority, cut: int) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Authority.load(authority.dump()[:cut])


def test_a_member_keeps_its_key_to_itself(authority: Authority, tmp_path: Path) -> None:
    key = new_key()
    identity = Identity(authority.ca, authority.certify(public_pem(key), "user:ada", listens=False), key)
    handshake(tmp_path, server=authority.issue("head", listens=True), client=identity)
    with pytest.raises(ValueError, match=r"\w"):
        authority.certify("no key", "user:ada", listens=False)


def test_a_certificate_is_renewed_on_a_context_that_is_in_use(authority: Authority, tmp_path: Path) -> None:
    old, new = (authority.issue(name, listens=True) for name in ("worker:old", "worker:new"))
    security = dask_security(old)
    context = security.get_connection_args("worker")["ssl_context"]
    before = len(security.contexts)
    security.renew(new)
    assert len(security.contexts) == before == 1
    assert context is security.contexts[0]


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
