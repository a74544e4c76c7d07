"""What people ask for by a button: done once, in a thread of its own, and answered."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

# does what is asked, and says how it went: (whether it was done, a sentence)
OnOrder = Callable[[str, str], tuple[bool, str]]
Answer = Callable[[dict[str, Any]], None]

REMEMBERED = 256
UNDER_WAY = 16
TEXT_CHARACTERS = 512


class Orders:
    """Takes ``{"id", "verb", "target"}`` from whichever thread sees it first; its second coming is ignored."""

    def __init__(self, on_order: OnOrder, answer: Answer) -> None:
        self._on_order, self._answer = on_order, answer
        self._lock = threading.Lock()
        self._seen: deque[str] = deque(maxlen=REMEMBERED)
        self._under_way = 0

    def take(self, content: Any) -> None:
        """Begin to do it, and return at once. What is no order is ignored."""
        order = _read(content)
        if order is None:
            return
        with self._lock:
            if order[0] in self._seen:
                return
            self._seen.append(order[0])
            self._under_way += 1
            too_many = self._under_way > UNDER_WAY
        threading.Thread(target=self._do, args=(*order, too_many), name=f"order {order[1]}", daemon=True).start()

    def _do(self, id: str, verb: str, target: str, too_many: bool) -> None:
        try:
            if too_many:
                ok, text = False, f"{UNDER_WAY} orders are being done; ask again when one of them is."
            else:
                ok, text = self._on_order(verb, target)
        except Exception as error:  # it is for whoever pressed the button
            ok, text = False, f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._under_way -= 1
        self._answer({"id": id, "ok": ok, "text": text})


def _read(content: Any) -> tuple[str, str, str] | None:
    """Id, verb and target, where it is an order."""
    if not isinstance(content, dict):
        return None
    values = [content.get(name) for name in ("id", "verb", "target")]
    if not all(isinstance(value, str) and len(value) <= TEXT_CHARACTERS for value in values) or not values[0]:
        return None
    return values[0], values[1], values[2]  # type: ignore[return-value]
