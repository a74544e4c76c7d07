"""From an invite to a membership."""

from __future__ import annotations

from typing import Any

from kalavai_nb.errors import NotWelcome, PoolClosed
from kalavai_nb.gate.keys import invite_key, ssh_key
from kalavai_nb.identity import Identity
from kalavai_nb.invites import Invite
from kalavai_nb.link.dial import ask, dial, hang_up
from kalavai_nb.link.membership import Membership, find, prune
from kalavai_nb.places import check_writable, data_directory, private_directory
from kalavai_nb.security import new_key, public_pem


async def enrol(invite: Invite, label: str) -> Membership:
    """Become a member, and keep that in private files; one that this user is already is used again.

    So the same invite, given again on this machine, does not count as another use of it. Raises NotWelcome where the
    pool refuses, PoolClosed where it does not answer.
    """
    known = find(gate=invite.gate, role=invite.role)
    if known:
        try:
            return await renew(known, (*invite.addresses, *known.addresses))
        except NotWelcome:
            # revoked, or forgotten there: this invite is a new beginning, unless it is the one that it came by
            if known.invite == invite.id:
                raise
    # an invite must not be used up by a disk that is full
    check_writable(private_directory(data_directory()))
    key = new_key()
    connection, address = await dial(invite.addresses, invite.gate, invite.id, invite_key(invite))
    try:
        reply = await ask(connection, "enrol", public_key=public_pem(key), label=label)
    finally:
        await hang_up(connection)
    if reply.get("role") != invite.role:
        raise PoolClosed("the pool's gate answers with another role than the invite's. Ask for a new one.")
    identity = Identity(str(reply["ca"]), str(reply["certificate"]), key)
    names: dict[str, Any] = {"pool": str(reply["pool"]), "member": str(reply["member"]), "role": str(reply["role"])}
    addresses = (address, *(each for each in invite.addresses if each != address))
    member = Membership(
        **names, addresses=addresses, gate=invite.gate, invite=invite.id, label=label, identity=identity
    )
    member = member.renewed(reply).save()
    prune()
    return member


async def renew(member: Membership, addresses: tuple[str, ...] = ()) -> Membership:
    """The same member with a new certificate, kept. Raises NotWelcome where it is none any more, or PoolClosed."""
    where = tuple(dict.fromkeys(addresses or member.addresses))
    connection, _ = await dial(where, member.gate, member.member, ssh_key(member.identity.key))
    try:
        reply = await ask(connection, "renew", public_key=public_pem(member.identity.key))
    finally:
        await hang_up(connection)
    return member.renewed(reply).save()
