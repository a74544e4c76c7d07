"""A systemd unit of this user that lends the machine whenever it runs, with no terminal open."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SYSTEMCTL_SECONDS = 30.0
# what leaving takes beside the grace: links closed, processes ended
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Service:
    """The unit of one pool; ``words`` are what `kalavai-nb` is called with."""

    pool: str
    words: tuple[str, ...] = ()
    grace_seconds: float = 60.0

    @property
    def name(self) -> str:
        """Of its file."""
        return f"kalavai-nb-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.pool)}.service"

    @property
    def path(self) -> Path:
        """Where systemd looks for units of this user."""
        configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(configuration) / "systemd" / "user" / self.name

    def text(self) -> str:
        """The unit's file."""
        command = " ".join(_quoted(word) for word in (sys.executable, "-m", "kalavai_nb", *self.words))
        home = os.environ.get("KALAVAI_HOME")
        environment = [f"Environment={_quoted(f'KALAVAI_HOME={home}')}"] if home else []
        lines = [
            "[Unit]",
            f"Description=Lends this machine to the pool {_escaped(self.pool)} (kalavai-nb)",
            # however long its pool is away, it goes on trying
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            f"ExecStart={command}",
            *environment,
            "Environment=PYTHONUNBUFFERED=1",
            "Restart=always",
            "RestartSec=5",
            # it has left as its owner asked, or its pool refuses it for good
            "RestartPreventExitStatus=0 2",
            # what runs may go on for the grace: systemd's first signal is like Ctrl-C
            "KillMode=mixed",
            f"TimeoutStopSec={self.grace_seconds + _END_SECONDS:.0f}",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
        return "\n".join(lines)

    def install(self) -> list[str]:
        """Write the unit and enable it where systemd is; sentences that say what was done and what is to be typed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text())
        said = [f"wrote {self.path}"]
        commands = [("daemon-reload",), ("enable", "--now", self.name)]
        trouble = _first_trouble(commands)
        if trouble:
            said.append(f"systemd could not be told ({trouble}). Where it runs, type:")
            said += [f"  systemctl --user {' '.join(command)}" for command in commands]
        else:
            said.append(f"{self.name} is enabled and runs; its log: journalctl --user -u {self.name}")
        user = os.environ.get("USER") or os.environ.get("LOGNAME") or "$USER"
        said.append(f"to lend also while nobody is logged in: loginctl enable-linger {user}")
        said.append(f"to undo: systemctl --user disable --now {self.name} && rm {self.path}")
        return said

    def remove(self) -> list[str]:
        """Stop it and take its file away, where there is one; sentences that say what was done."""
        if not self.path.exists():
            return []
        trouble = _first_trouble([("disable", "--now", self.name)])
        self.path.unlink(missing_ok=True)
        trouble = trouble or _first_trouble([("daemon-reload",)])
        return [f"removed {self.path}" + (f" (systemd could not be told: {trouble})" if trouble else "")]


def _first_trouble(commands: Sequence[Sequence[str]]) -> str:
    """What went wrong with the first of these orders to systemd that did not work; empty where all did."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return "there is no systemctl here"
    for command in commands:
        try:
            done = subprocess.run(
                [systemctl, "--user", *command], capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return lines[0] if lines else f"systemctl ended with status {done.returncode}"
    return ""


def _escaped(text: str) -> str:
    """As systemd reads it: % begins what it fills in, and a line ends an entry."""
    return " ".join(text.replace("\\", "\\\\").replace("%", "%%").split())


def _quoted(word: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_@+=:,./-]+", word):
        return word
    # in a command, systemd fills in $ as well
    return '"' + _escaped(word).replace('"', '\\"').replace("$", "$$") + '"'
