"""The owner of this machine, who lends its devices to an embedded pool and says, while it runs, how much of them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import kalavai_nb as kn
from kalavai_nb.lending.limits import Limits
from kalavai_nb.state import Device
from kalavai_nb.worker.devices import local_devices

SECONDS = 30.0


class Lender:
    """All devices of an embedded pool, lent with other limits from now on."""

    def __init__(self, pool: kn.Pool) -> None:
        self.pool = pool
        self.devices = local_devices(len(pool.devices))

    def lend(self, **options: Any) -> Device:
        """With these options of the command line; the first device as the pool sees it then."""
        limits = Limits.parse(options)
        return self.order({device.id: limits.order(device) for device in self.devices})

    def order(self, limits: dict[str, dict[str, Any]]) -> Device:
        """The same in the words of the guard, by the ids of devices."""
        embedded: Any = self.pool._opened
        order = {
            "head": None,
            "address": "",
            "identity": asdict(embedded._pool.authority.issue("worker:local", listens=True)),
            "devices": [asdict(device) for device in self.devices],
            "contacts": {},
            "leaving": {},
            "limits": limits,
            "proxy": 0,
            "agent": "",
            "listens": False,
            "cwd": ".",
            "measure": False,
        }
        pipe = embedded._pool._machine.stdin
        pipe.write(json.dumps(order).encode() + b"\n")
        pipe.flush()
        deadline = time.monotonic() + SECONDS
        while any(device.limits != limits.get(device.id, {}).get("text", "") for device in self.pool.devices):
            assert time.monotonic() < deadline, self.pool.devices
            time.sleep(0.02)
        return self.pool.devices[0]
