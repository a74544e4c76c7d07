"""What this machine lends to a pool, kept beside its membership, so that it is so the next time as well."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.lending.limits import Limits
from kalavai_nb.places import read_private, write_private

LIMITS, WAYS = "limits.json", "lends.json"


@dataclass(frozen=True)
class Lends:
    """The limits, how many devices there are to lend (None: all), and whether others may dial this machine."""

    limits: Limits = field(default_factory=Limits)
    devices: int | None = None
    outbound_only: bool = False

    @classmethod
    def load(cls, directory: Path) -> Lends:
        """What was kept there; everything where nothing was. Raises OptionError for files that cannot be read."""
        limits, ways = _read(directory / LIMITS), _read(directory / WAYS)
        count = ways.get("devices")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            raise OptionError(f"{directory / WAYS} cannot be read: 'devices' is no number. Mend it, or take it away.")
        return cls(Limits.from_fields(limits), count, bool(ways.get("outbound_only")))

    def save(self, directory: Path) -> None:
        """Keep it there."""
        write_private(directory / LIMITS, json.dumps(self.limits.to_fields(), indent=1))
        write_private(directory / WAYS, json.dumps({name: asdict(self)[name] for name in ("devices", "outbound_only")}))


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(read_private(path))
        if not isinstance(fields, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # limits that cannot be read must not become none
        raise OptionError(
            f"{path} cannot be read ({error}). Mend it, or take it away: then nothing is limited."
        ) from None
    return fields
