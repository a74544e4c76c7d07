"""What of a pool outlives its processes: its authority, its members, the keys of its gate and its admin, its port."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalavai_nb.errors import KalavaiError, OptionError
from kalavai_nb.members import Members
from kalavai_nb.places import alone, data_directory, hosted, private_directory, read_private, write_private
from kalavai_nb.security import Authority, new_key

ANYWHERE = "0.0.0.0"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}")
AUTHORITY, GATE, ADMIN, MEMBERS = "authority.pem", "gate.json", "admin.json", "members.json"
LOCK = "lock"


@dataclass
class Kept:
    """The files of one pool, read. ``port`` is 0 until its gate has listened once."""

    name: str
    directory: Path
    authority: Authority
    members: Members
    gate_key: str
    admin_key: str
    port: int = 0
    listen: str = ANYWHERE
    public: tuple[str, ...] = ()

    @classmethod
    def open(cls, name: str) -> tuple[Kept, bool]:
        """The pool of this name, and whether it was made just now. Raises KalavaiError for unreadable files."""
        check_name(name)
        directory = hosted(name)
        if (directory / GATE).exists():
            return cls._read(name, directory), False
        # two that make it at once must not mix their keys
        with alone(private_directory(directory) / LOCK):
            if (directory / GATE).exists():
                return cls._read(name, directory), False
            kept = cls(name, directory, Authority(name), Members(directory / MEMBERS), new_key(), new_key())
            write_private(directory / AUTHORITY, kept.authority.dump())
            write_private(directory / ADMIN, json.dumps({"key": kept.admin_key}))
            # last: where it is there, all is
            kept.save()
        return kept, True

    def save(self) -> None:
        """Write what may have changed: where the gate listens, and what it is called from outside."""
        fields = {"key": self.gate_key, "port": self.port, "listen": self.listen, "public": list(self.public)}
        write_private(self.directory / GATE, json.dumps(fields))

    @classmethod
    def _read(cls, name: str, directory: Path) -> Kept:
        try:
            gate: dict[str, Any] = json.loads(read_private(directory / GATE))
            if not 0 <= int(gate["port"]) < 65536:
                raise ValueError(f"there is no port {gate['port']}")
            return cls(
                name,
                directory,
                Authority.load(read_private(directory / AUTHORITY)),
                Members(directory / MEMBERS),
                str(gate["key"]),
                str(json.loads(read_private(directory / ADMIN))["key"]),
                int(gate["port"]),
                str(gate["listen"]),
                tuple(str(each) for each in gate["public"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, KalavaiError):
                raise
            raise KalavaiError(
                f"the files of the pool {name}, in {directory}, cannot be read ({error}). Mend them, or take the pool "
                f"away with kalavai-nb stop {name} --forget: then it is made anew, and all need new invites."
            ) from None


def check_name(name: str) -> str:
    """The name of a pool, which becomes that of a directory. Raises OptionError."""
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} cannot be the name of a pool: wanted up to 41 letters, digits, '-', '_' and '.', such as lab-1."
        )
    return name


def hosted_names() -> list[str]:
    """The pools that are kept on this machine."""
    directory = data_directory() / "pools"
    return sorted(path.parent.name for path in directory.glob(f"*/{GATE}"))


def default_name() -> str:
    """The only pool there is here; else what this machine is called."""
    names = hosted_names()
    if len(names) == 1:
        return names[0]
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname().partition(".")[0]).strip("-._")[:41]
    if len(names) > 1 and host not in names:
        raise OptionError(f"several pools are kept here: say which one, of {', '.join(names)}.")
    return host or "pool"
