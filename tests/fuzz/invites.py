"""Invites: text that somebody pasted."""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Iterator

from kalavai_nb.errors import InviteError
from kalavai_nb.invites import SCHEME, Invite, split_address

from .mutation import Mutator

HEAD_BYTES = 7
VALID = tuple(
    Invite(pool, addresses, "ab" * 32, "0123456789abcdef" * 2, role, 2e9).encode()
    for pool, addresses, role in [
        ("lab", ("10.0.0.1:8786",), "user"),
        ("Ada's pool", ("pool.example.org:443", "[2001:db8::1]:443", "192.168.1.7:40123"), "worker"),
        ("größe", tuple(f"10.1.{n}.1:{9000 + n}" for n in range(12)), "worker"),
    ]
)
FIELDS = ["lab", ["10.0.0.1:8786", "[::1]:5000"], "user", 2_000_000_000]


class Invites:
    """Most inputs are another text; some have the right checksum, and say something else."""

    name = "invites"

    def make(self, mutator: Mutator) -> str:
        if mutator.happens(0.6):
            return mutator.text(VALID)
        if mutator.happens(0.6):
            fields = json.dumps(mutator.value(FIELDS)).encode()
            return sealed(bytes(48) + zlib.compress(fields))
        return sealed(mutator.bytes([raw[HEAD_BYTES:] for raw in map(raw_of, VALID)]))

    def take(self, given: str) -> str:
        try:
            invite = Invite.decode(given)
        except InviteError as error:
            sentence = str(error)
            assert sentence.isprintable(), "a terminal would obey what the sentence says"
            assert len(sentence) < 500
            return "refused"
        assert Invite.decode(invite.encode()) == invite
        assert invite.pool.isprintable(), "a terminal would obey the pool's name"
        assert len(invite.pool) <= 300
        for address in invite.addresses:
            host, port = split_address(address)
            assert 0 < port < 65536
            assert host.isprintable()
            assert " " not in host
        assert len(invite.gate) == 64
        assert len(invite.secret) == 32
        assert len(invite.id) < 20
        return "accepted"


def raw_of(text: str) -> bytes:
    """The bytes in an invite."""
    body = text.removeprefix(SCHEME)
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def sealed(body: bytes) -> str:
    """An invite of these bytes, with the length and the checksum that belong to them."""
    body = body[:60_000]
    start = b"\x01" + (HEAD_BYTES + len(body)).to_bytes(2, "big")
    checksum = zlib.crc32(start + body).to_bytes(4, "big")
    return SCHEME + base64.urlsafe_b64encode(start + checksum + body).decode().rstrip("=")


@contextlib.contextmanager
def opened() -> Iterator[Invites]:
    yield Invites()
