"""How a plugin of a worker hears what the head passes on to it."""

from __future__ import annotations

import inspect
from typing import Any


def register(plugin: Any, worker: Any) -> None:
    """Every method ``kn_*`` of this plugin becomes a handler of its name, called with the message's fields.

    What has a reply is a coroutine; messages have none, and keep their order.
    """
    for name in (name for name in dir(plugin) if name.startswith("kn_")):
        handler = getattr(plugin, name)
        replies = inspect.iscoroutinefunction(handler)
        (worker.handlers if replies else worker.stream_handlers)[name] = handler
