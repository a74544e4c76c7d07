"""A certificate authority per pool, and a certificate per member.

Everything is TLS with certificates of the pool's own CA on both sides, on loopback too: on a shared machine, loopback
is a network. Keys are EC P-256. The name on a certificate says its role: ``head``, ``worker:<name>``, ``user:<name>``.
What this keeps out is strangers; members can run code on every machine of the pool.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from kalavai_nb.identity import Identity

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from distributed import Security

# a clock may be wrong by this: a certificate is good from so long ago
CLOCK_SECONDS = 86400.0
# what a member gets; its agent renews it long before
MEMBER_SECONDS = 2 * 86400.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def dask_security(identity: Identity) -> Security:
    """One identity for every role that Dask knows.

    Its method ``renew(identity)`` has connections that are made from then on show a newer certificate.
    """
    from distributed import Security

    class Renewable(Security):
        def renew(self, newer: Identity) -> None:
            for context in self.contexts:
                newer.load_into(context)

        def _get_tls_context(self, tls: Any, purpose: Any) -> Any:
            context = super()._get_tls_context(tls, purpose)
            self.contexts = [*getattr(self, "contexts", ()), context]
            return context

    return Renewable(
        tls_ca_file=identity.ca,
        require_encryption=True,
        tls_scheduler_cert=identity.certificate,
        tls_scheduler_key=identity.key,
        tls_worker_cert=identity.certificate,
        tls_worker_key=identity.key,
        tls_client_cert=identity.certificate,
        tls_client_key=identity.key,
    )


class Authority:
    """The CA of one pool. Its key is in the process that opened it, and in a private file of a pool that stays."""

    def __init__(self, pool: str) -> None:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509 import BasicConstraints, SubjectKeyIdentifier

        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _x509_name(f"kalavai pool {pool}")
        builder = _certificate(name, name, self._key.public_key(), seconds=10 * 365 * 86400)
        builder = builder.add_extension(BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    @property
    def ca(self) -> str:
        """Its own certificate, as PEM text: what members know each other by."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self._certificate.public_bytes(Encoding.PEM).decode()

    def dump(self) -> str:
        """Its key and its certificate, as PEM text, for `load`."""
        return _private_pem(self._key) + self.ca

    @classmethod
    def load(cls, text: str) -> Authority:
        """The authority that `dump` has written. Raises ValueError for text that is none."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        authority = cls.__new__(cls)
        key = load_pem_private_key(text.encode(), None)
        authority._key = key  # type: ignore[assignment]  # it wrote no other kind
        authority._certificate = x509.load_pem_x509_certificate(text.encode())
        if authority._certificate.public_key() != key.public_key():
            raise ValueError("the certificate is not of this key")
        return authority

    def issue(self, name: str, *, listens: bool, seconds: float = 30 * 86400) -> Identity:
        """A new key and a certificate for ``name``; one that never ``listens`` cannot pose as the head."""
        key = new_key()
        return Identity(self.ca, self.certify(public_pem(key), name, listens=listens, seconds=seconds), key)

    def certify(self, public_key: str, name: str, *, listens: bool, seconds: float = MEMBER_SECONDS) -> str:
        """A certificate for somebody else's key, both as PEM text. Raises ValueError for text that is no key."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
        from cryptography.x509 import AuthorityKeyIdentifier, ExtendedKeyUsage
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        try:
            key = load_pem_public_key(public_key.encode())
        except UnsupportedAlgorithm as error:
            raise ValueError(f"wanted a key on the curve P-256 ({error})") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ValueError("wanted a key on the curve P-256")
        usage = [Usage.CLIENT_AUTH] + [Usage.SERVER_AUTH] * listens
        builder = _certificate(_x509_name(name), self._certificate.subject, key, seconds)
        issuer = AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(ExtendedKeyUsage(usage), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def new_key() -> str:
    """A private key for a member, as PEM text."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def public_pem(key: str) -> str:
    """The public half of a private key, both as PEM text."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    public = load_pem_private_key(key.encode(), None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def parse_seconds(text: str | float) -> float:
    """``"10m"``, ``"2h"``, ``"1.5d"``, ``"90"`` or a number, as seconds. Raises ValueError for anything else."""
    if isinstance(text, (int, float)) and not isinstance(text, bool) and 0 <= text < float("inf"):
        return float(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", str(text).strip())
    if not match:
        raise ValueError(f"wanted a time such as 30s, 10m or 2h, got {text!r}")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _x509_name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, seconds: float
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=CLOCK_SECONDS))
        .not_valid_after(now + datetime.timedelta(seconds=seconds))
    )
