"""SSH's side of keys, and what both ends of a connection to a gate agree on."""

from __future__ import annotations

import hashlib
from typing import Any

import asyncssh

from kalavai_nb.invites import Invite

# where the head is, and where ports of other machines are, in the words of a forwarded connection
HEAD = "head"
RELAY = "relay"
ADMIN = "admin"
MOST_LINE_BYTES = 1 << 20

# a connection that is silent for three of these is cut off, a few seconds before Dask would notice
_KEEPALIVE_SECONDS = 3
AGREED: dict[str, Any] = {
    # the quickest by far with AES in hardware; what goes through is encrypted by its ends as well
    "encryption_algs": ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
    "compression_algs": ["none"],
    "keepalive_interval": _KEEPALIVE_SECONDS,
    "keepalive_count_max": 2,
    # nobody's own settings, agents and keys
    "config": [],
}


def ssh_key(pem: str) -> asyncssh.SSHKey:
    """A member's private key as SSH has it. Raises ValueError."""
    return asyncssh.import_private_key(pem)


def invite_key(invite: Invite) -> asyncssh.SSHKey:
    """The private key that belongs to an invite."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.from_private_bytes(invite.seed)
    return asyncssh.import_private_key(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def public_text(key: asyncssh.SSHKey) -> str:
    """The public half of a key, as one line of text without a comment."""
    return " ".join(key.export_public_key().decode().split()[:2])


def public_text_of(pem: str) -> str:
    """The same of a public key that came as PEM text. Raises ValueError."""
    return public_text(asyncssh.import_public_key(pem))


def fingerprint(key: asyncssh.SSHKey) -> str:
    """What an invite knows a gate's key by: its SHA-256, in hex."""
    return hashlib.sha256(key.public_data).hexdigest()
