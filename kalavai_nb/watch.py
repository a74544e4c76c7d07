"""The thread of a pool that looks at it each second, for whoever wants to see it, and that hears of orders.

It goes on while a cell runs: what it shows are snapshots, to panels in this notebook and to a file for the sidebar;
what it hears are orders, which people give by buttons there, since a busy kernel has no time for widgets.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from kalavai_nb.announce import say
from kalavai_nb.engine import Engine
from kalavai_nb.errors import PoolClosed
from kalavai_nb.registry.entry import Entry, Order

State = dict[str, Any]
Sink = Callable[[State], None]
# gives the sentence that says what was done; raises what says why it was not
CarryOut = Callable[[str, str], str]

# workers read their devices when a second begins, so that this is soon after
PHASE_SECONDS = 0.25
ORDERS_SECONDS = 0.25
MOST_ORDERS = 16
# a head that takes longer is not what anybody would call live
ANSWER_SECONDS = 3.0


class NothingMore(Exception):
    """Said by a sink that has seen all it wanted."""


class Watch:
    """Looks until it is closed. ``activities`` is asked what this owner runs; all is called on threads of ours.

    ``snapshot`` is the last there was; ``reason`` says why it is not of now, where it is not.
    """

    def __init__(
        self,
        engine: Engine,
        label: str,
        activities: Callable[[], Mapping[str, Any]],
        carry_out: CarryOut,
        *,
        can_invite: bool,
    ) -> None:
        self._engine, self._label, self._can_invite = engine, label, can_invite
        self._activities, self._carry_out = activities, carry_out
        self._entry = Entry(engine.pool_id, engine.owner, label, can_invite)
        self.snapshot = engine.snapshot()
        self._link, self.reason = "live", ""
        self._sinks: list[Sink] = []
        self._said: set[str] = set()
        self._under_way = threading.BoundedSemaphore(MOST_ORDERS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._live, name="kalavai-watch", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """What there is to see now, in the form that the panel and the sidebar have in common."""
        owner = {
            "label": self._label,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "link": self._link,
            "can_invite": self._can_invite,
            **({"reason": self.reason} if self.reason else {}),
        }
        pool = {"snapshot": self.snapshot.to_dict(), "owners": {self._engine.owner: owner}}
        return {"version": 1, "pools": {self._engine.pool_id: pool}}

    def look(self) -> None:
        """Ask the head now; what it says, or that it does not answer, is what there is to see from then on."""
        try:
            self.snapshot = self._engine.snapshot(self._activities(), ANSWER_SECONDS)
            self._link, self.reason = "live", ""
        except PoolClosed as error:
            self._link, self.reason = "lost", str(error)

    def listen(self, sink: Sink) -> None:
        """Give each state to ``sink``, on this thread, until it raises `NothingMore`."""
        self._sinks.append(sink)

    def order(self, verb: str, target: str) -> tuple[bool, str]:
        """Do what a button says; whether it was done, and a sentence about it. Never raises."""
        try:
            return True, self._carry_out(verb, target)
        except Exception as error:  # it is for the person who pressed the button, who has no traceback to read
            return False, str(error) or type(error).__name__

    def close(self) -> None:
        """Look no more, and take the file away. Idempotent."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(ANSWER_SECONDS + 1)
        self._entry.remove()

    # the thread

    def _live(self) -> None:
        # the first look is there when this is made
        due = self._next(time.time())
        while not self._closing.is_set():
            now = time.time()
            # a machine that slept, or a clock that was set, makes for one look, not for many
            if now >= due or due - now > 2:
                due = self._next(now)
                try:
                    self.look()
                    self._show()
                except Exception as error:  # one look that fails is not the end of looking
                    self._complain(f"the pool cannot be looked at now ({type(error).__name__}: {error})")
            self._hear_orders()
            self._closing.wait(max(0.0, min(ORDERS_SECONDS, due - time.time())))

    @staticmethod
    def _next(now: float) -> float:
        return math.floor(now - PHASE_SECONDS) + 1 + PHASE_SECONDS

    def _show(self) -> None:
        if self._closing.is_set():
            return
        self._write()
        sinks = list(self._sinks)
        state = self.state if sinks else {}
        for sink in sinks:
            try:
                sink(state)
            except NothingMore:
                self._sinks.remove(sink)
            except Exception as error:
                self._complain(f"a panel cannot show this pool now ({type(error).__name__}: {error})")

    def _write(self) -> None:
        try:
            self._entry.write(self.snapshot.to_dict(), self._link, self.reason)
        except OSError as error:
            self._complain(
                f"the sidebar cannot show this pool: its file cannot be written ({error}). Make room there, or start "
                "Jupyter and this notebook with another JUPYTER_RUNTIME_DIR; the panel and all else go on"
            )

    def _hear_orders(self) -> None:
        with contextlib.suppress(OSError):
            for order in self._entry.orders():
                if self._under_way.acquire(blocking=False):
                    name = f"kalavai-order-{order.verb}"
                    threading.Thread(target=self._answer, args=(order,), name=name, daemon=True).start()
                else:
                    self._entry.reply(order, False, f"{MOST_ORDERS} orders are being done; ask again in a moment.")

    def _answer(self, order: Order) -> None:
        try:
            done, text = self.order(order.verb, order.target)
        finally:
            self._under_way.release()
        with contextlib.suppress(OSError):
            self._entry.reply(order, done, text)

    def _complain(self, sentence: str) -> None:
        """Say it in the notebook, once."""
        if sentence not in self._said:
            self._said.add(sentence)
            say(sentence)
