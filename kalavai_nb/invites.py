"""An invite: where a pool is, how its gate is known from others, and a secret, in a text that survives a chat message.

The text carries no certificate: whoever uses it makes a key of its own, and shows by the secret that it was invited.
The secret is the seed of an SSH key; the gate has only the public half.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass

from kalavai_nb.errors import InviteError

SCHEME = "kalavai://"
ROLES = ("user", "worker")
SECRET_BYTES = 16
_VERSION = 1
# version, length of all, checksum of what follows
_HEAD_BYTES = 1 + 2 + 4
_MOST_CHARACTERS = 4096
_MOST_SHOWN_CHARACTERS = 300
# what chats, mails and hands put around it
_WRAPPING = "\"'`<>()[]{},.;\u201c\u201d\u2018\u2019"


@dataclass(frozen=True)
class Invite:
    """Comes from ``kalavai-nb invite`` or ``pool.invite()``, as text.

    ``addresses`` are ``host:port`` of the pool's gate, ``gate`` is the SHA-256 of its public key (hex), ``secret`` the
    seed of the invite's own key (hex, 16 bytes), ``expires`` a time of the head's clock.
    """

    pool: str
    addresses: tuple[str, ...]
    gate: str
    secret: str
    role: str
    expires: float

    def encode(self) -> str:
        """The text, ``kalavai://…``."""
        fields = [self.pool, list(self.addresses), self.role, int(self.expires)]
        names = zlib.compress(json.dumps(fields, separators=(",", ":")).encode(), 9)
        body = bytes.fromhex(self.gate) + bytes.fromhex(self.secret) + names
        length = (_HEAD_BYTES + len(body)).to_bytes(2, "big")
        checksum = zlib.crc32(bytes([_VERSION]) + length + body).to_bytes(4, "big")
        return SCHEME + base64.urlsafe_b64encode(bytes([_VERSION]) + length + checksum + body).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Invite:
        """Read an invite. Raises InviteError for text that is none, is cut off, or has a wrong character.

        Whether it has expired is for the pool to say: this machine's clock may be wrong.
        """
        text = "".join(text.split()).strip(_WRAPPING)
        if not text.startswith(SCHEME):
            shown = text[:24] + "…" * (len(text) > 24)
            raise InviteError(f"this is no invite: wanted text that starts with {SCHEME}, got {shown!r}.")
        raw = _bytes_of(text.removeprefix(SCHEME), text)
        if raw[:1] != bytes([_VERSION]) and len(raw) > _HEAD_BYTES:
            raise InviteError(
                f"the invite is damaged, or from another version of kalavai-nb (format {raw[0]}; this one reads "
                f"{_VERSION}). Copy all of it again; where that does not help, update kalavai-nb on both sides."
            )
        length = int.from_bytes(raw[1:3], "big")
        if len(raw) < _HEAD_BYTES or len(raw) < length:
            wanted = f" of {_characters(length)}" if len(raw) >= _HEAD_BYTES else ""
            raise InviteError(f"the invite is cut off: {len(text)}{wanted} characters are there. Copy all of it again.")
        if len(raw) > length:
            more = len(text) - _characters(length)
            what = "1 character" if more == 1 else f"{more} characters"
            raise InviteError(f"{what} too many after the invite. Copy it again, and nothing else.")
        body = raw[_HEAD_BYTES:]
        if zlib.crc32(raw[:3] + body).to_bytes(4, "big") != raw[3:_HEAD_BYTES]:
            raise InviteError(
                "the invite is damaged: its checksum does not fit, so a character is wrong. Copy it anew."
            )
        return cls._of(body)

    @classmethod
    def _of(cls, body: bytes) -> Invite:
        """What the body says, of which the checksum is right: still it may be somebody's joke."""
        try:
            unpacker = zlib.decompressobj()
            fields = json.loads(unpacker.decompress(body[32 + SECRET_BYTES :], 1 << 14))
            pool, addresses, role, expires = fields
            invite = cls(
                _shown(pool),
                tuple(_address(each) for each in addresses),
                body[:32].hex(),
                body[32 : 32 + SECRET_BYTES].hex(),
                str(role),
                float(int(expires)),
            )
        except (ValueError, TypeError, zlib.error, OverflowError, RecursionError):
            raise InviteError("the invite says nothing that can be meant. Ask for a new one.") from None
        if invite.role not in ROLES or not invite.addresses or len(body) < 32 + SECRET_BYTES:
            raise InviteError("the invite is for nothing that this version knows. Ask for a new one.")
        return invite

    @property
    def seed(self) -> bytes:
        """The private half of the invite's Ed25519 key."""
        return hashlib.sha256(b"kalavai invite" + bytes.fromhex(self.secret)).digest()

    @property
    def id(self) -> str:
        """What the invite is called in lists and in a log: says nothing about its secret."""
        return invite_id(self.secret)


def invite_id(secret: str) -> str:
    """What the invite with this secret is called."""
    return "i-" + hashlib.sha256(b"kalavai invite id" + bytes.fromhex(secret)).hexdigest()[:8]


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as a pair. Raises ValueError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"wanted host:port, got {address!r}")
    return host, int(port)


def _address(text: object) -> str:
    address = _shown(text)
    split_address(address)
    if " " in address:
        raise ValueError(f"wanted host:port, got {address!r}")
    return address


def _shown(text: object) -> str:
    """Text that people are shown. Raises ValueError for what a terminal would obey, or that fills it."""
    if not isinstance(text, str) or not text.isprintable() or len(text) > _MOST_SHOWN_CHARACTERS:
        raise ValueError("wanted a line of text")
    return text


def _bytes_of(body: str, text: str) -> bytes:
    if len(body) > _MOST_CHARACTERS:
        raise InviteError(f"this is no invite: {len(text)} characters are too many. Copy it again, and nothing else.")
    body = body.rstrip("=")
    wrong = next((c for c in body if not (c.isascii() and (c.isalnum() or c in "-_"))), None)
    if wrong is not None:
        raise InviteError(f"the invite is damaged: {wrong!r} cannot be in it. Copy it again, and nothing else.")
    # one character alone carries no byte: it is left of more
    whole = body[: len(body) - (len(body) % 4 == 1)]
    raw = base64.b64decode(whole + "=" * (-len(whole) % 4), altchars=b"-_")
    is_same = base64.urlsafe_b64encode(raw).decode().rstrip("=") == body
    if not is_same and len(raw) >= _HEAD_BYTES and len(raw) == int.from_bytes(raw[1:3], "big"):
        raise InviteError("the invite is damaged: its last character is wrong. Copy it again.")
    return raw


def _characters(length: int) -> int:
    """How many characters an invite of so many bytes has."""
    return len(SCHEME) + (length * 8 + 5) // 6
