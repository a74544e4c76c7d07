"""Orders as the server and the panel get them, before they are files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from kalavai_nb.panel.orders import _read as of_panel
from kalavai_nb.registry.asking import VERBS
from kalavai_nb.server.ordering import _read as of_server

from .mutation import Mutator

ASKED: dict[str, Any] = {"pool": "0123456789ab", "owner": "o1", "verb": "release", "target": "l1"}
PRESSED: dict[str, Any] = {"id": "7", "verb": "stop_cell", "target": "c1"}


class Requests:
    """Bodies of HTTP requests, and messages of a widget."""

    name = "requests"

    def make(self, mutator: Mutator) -> Any:
        if mutator.happens(0.3):
            return mutator.value(PRESSED)
        if mutator.happens(0.5):
            return json.dumps(mutator.value(ASKED)).encode("utf-8", "surrogatepass")
        return mutator.bytes([json.dumps(ASKED).encode()])

    def take(self, given: Any) -> str:
        if isinstance(given, bytes):
            asked = of_server(given)
            if isinstance(asked, str):
                assert len(asked) < 500
                return "refused"
            assert asked[2] in VERBS
            return "asked"
        order = of_panel(given)
        if order is None:
            return "ignored"
        assert all(isinstance(each, str) for each in order)
        return "pressed"


@contextlib.contextmanager
def opened() -> Iterator[Requests]:
    yield Requests()
