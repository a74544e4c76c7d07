"""A certificate authority per pool, a certificate per member, and invites.

Everything is TLS with certificates of the pool's own CA on both sides, on loopback too: on a shared machine, loopback
is a network. Keys are EC P-256. The name on a certificate says its role: ``head``, ``worker:<name>``, ``user:<name>``.
What this keeps out is strangers; members can run code on every machine of the pool.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kalavai_nb.errors import InviteError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from distributed import Security

SCHEME = "kalavai://"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Identity:
    """What one member needs to take part: the pool's CA, its own certificate and its key, as PEM text."""

    ca: str
    certificate: str
    key: str

    def security(self) -> Security:
        """The same identity for every role that Dask knows."""
        from distributed import Security

        return Security(
            tls_ca_file=self.ca,
            require_encryption=True,
            tls_scheduler_cert=self.certificate,
            tls_scheduler_key=self.key,
            tls_worker_cert=self.certificate,
            tls_worker_key=self.key,
            tls_client_cert=self.certificate,
            tls_client_key=self.key,
        )


class Authority:
    """The CA of one pool. Lives in the process that opened the pool; its key is never written anywhere."""

    def __init__(self, pool: str) -> None:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509 import BasicConstraints, SubjectKeyIdentifier

        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _x509_name(f"kalavai pool {pool}")
        builder = _certificate(self._name, self._name, self._key, seconds=365 * 86400)
        builder = builder.add_extension(BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, *, listens: bool, seconds: float = 30 * 86400) -> Identity:
        """A certificate for ``name``; one that never ``listens`` cannot pose as the head."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509 import AuthorityKeyIdentifier, ExtendedKeyUsage
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        key = ec.generate_private_key(ec.SECP256R1())
        usage = [Usage.CLIENT_AUTH] + [Usage.SERVER_AUTH] * listens
        builder = _certificate(_x509_name(name), self._name, key, seconds)
        issuer = AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        certificate = builder.add_extension(ExtendedKeyUsage(usage), critical=False).sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        return Identity(
            ca=self._certificate.public_bytes(pem).decode(),
            certificate=certificate.public_bytes(pem).decode(),
            key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
        )


@dataclass(frozen=True)
class Invite:
    """An address and an identity in one string that survives a chat message: ``kalavai://<text>``."""

    pool: str
    address: str
    role: str
    expires: float
    identity: Identity

    def encode(self) -> str:
        packed = zlib.compress(json.dumps(asdict(self)).encode(), 9)
        checksum = zlib.crc32(packed).to_bytes(4, "big")
        return SCHEME + base64.urlsafe_b64encode(checksum + packed).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Invite:
        """Read an invite. Raises InviteError for text that is cut off, wrong or expired."""
        text = "".join(text.split())
        if not text.startswith(SCHEME):
            raise InviteError(f"this is no invite: wanted text that starts with {SCHEME}, got {text[:24]!r}.")
        body = text.removeprefix(SCHEME)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            if zlib.crc32(raw[4:]).to_bytes(4, "big") != raw[:4]:
                raise ValueError("checksum")
            fields = json.loads(zlib.decompress(raw[4:]))
            invite = cls(**{**fields, "identity": Identity(**fields["identity"])})
        except (ValueError, TypeError, KeyError, zlib.error):
            raise InviteError(
                f"the invite is damaged or cut off: its checksum does not fit its {len(text)} characters. "
                "Copy all of it again."
            ) from None
        now = datetime.datetime.now().timestamp()
        if invite.expires < now:
            ago = datetime.timedelta(seconds=round(now - invite.expires))
            raise InviteError(f"the invite to {invite.pool} expired {ago} ago; ask for a new one with pool.invite()")
        return invite


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


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, seconds: float
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(seconds=seconds))
    )
