"""The devices of this machine that its owner could lend."""

from __future__ import annotations

from kalavai_nb.errors import NotEnoughDevices, OptionError
from kalavai_nb.lending.limits import Limits, check
from kalavai_nb.state import Device
from kalavai_nb.worker.devices import local_devices


def chosen_devices(count: int | None = None, limits: Limits | None = None) -> list[Device]:
    """All devices of this machine, or the first ``count``. Raises OptionError where they, or those of the limits, lack.

    Those that the limits leave out are among them: the limits may change.
    """
    if count is not None and count < 1:
        raise OptionError(f"--devices {count} lends nothing: wanted 1 or more.")
    try:
        devices = local_devices(count)
    except NotEnoughDevices as error:
        raise OptionError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    if limits is not None:
        check(limits, devices)
    return devices
