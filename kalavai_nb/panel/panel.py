"""The panel: the pool live in the notebook, also while a cell runs, and its last state where the notebook is saved."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalavai_nb.panel.arrivals import see_arrivals
from kalavai_nb.panel.orders import OnOrder, Orders
from kalavai_nb.screen import publish
from kalavai_nb.terminal import in_kernel

if TYPE_CHECKING:
    from kalavai_nb.panel.widget import PanelWidget

State = dict[str, Any]
# {"text/plain", "text/html"} of the last state
Picture = Callable[[], dict[str, str]]

# how old the still picture below a live view may be while something runs
STILL_SECONDS = 60.0
OUTPUT = ".jp-OutputArea-child"
STATIC = Path(__file__).parent / "static"


class Panel:
    """The pool as it is, in as many cells as display it; ``update`` keeps all of them up to date.

    A display has two parts: a widget, and below it a still picture as plain HTML, which the widget's view hides while
    it is there. So a saved notebook shows the last state everywhere, and the picture can be renewed without a flicker
    in the live view. Where widgets cannot live, the picture alone is there, and is renewed at each update.

    Parameters
    ----------
    first : dict
        The state to begin with (see ``State`` of the labextension).
    picture : callable
        Gives the still picture of the last state, ``{"text/plain": …, "text/html": …}``; called only when it is needed.
    on_order : callable, optional
        Does what a button asks for: ``(verb, target) -> (ok, sentence)``. Runs in a thread of its own, so it may block.
    widget : bool
        False: plain HTML, no buttons.
    view : str
        What of the state is shown: "pool" is all of it.
    """

    def __init__(
        self,
        first: State,
        picture: Picture,
        on_order: OnOrder | None = None,
        *,
        widget: bool = True,
        view: str = "pool",
    ) -> None:
        self._state, self._picture, self._view = first, picture, view
        self._orders = Orders(on_order or _cannot, self._answer)
        self._wants_widget = widget
        self._widget: PanelWidget | None = None
        self._still = _Still(f"panel-{secrets.token_hex(4)}")
        self._lock = threading.RLock()
        self._views = self._most_views = 0
        self._busy_at_last, self._to_renew = _is_busy(first), False
        self._closed, self._pid = False, os.getpid()

    @property
    def closed(self) -> bool:
        """Whether it is not updated any more."""
        return self._closed

    def update(self, state: State) -> None:
        """Show this state from now on. Cheap while nobody looks; may be called by any thread, once a second."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._state = state
            # a front end that has counted views, and counts none now, is not sent anything
            if self._widget and (self._views or not self._most_views):
                self._widget.state = state
            self._renew(_is_busy(state))

    def show(self) -> None:
        """Display it in the cell that runs, as naming it on a cell's last line does."""
        with self._lock:
            if not in_kernel():
                publish(self._picture(), {})
                return
            if not self._closed and self._wants_widget and self._widget is None:
                self._widget = self._make_widget()
            if self._widget:
                publish(self._widget.bundle(), {})
            self._still.show(self._picture())

    def close(self) -> None:
        """Leave the last state where it was displayed, and end the live view. Idempotent."""
        with self._lock:
            # a forked child of the notebook has a copy of this object, but not the displays
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
            self._still.renew(self._picture)
            if self._widget:
                # else the front end counts its views down in a model that is no more, and says that it cannot
                self._widget._view_count = None
                self._widget.close()
                self._widget = None

    def __repr__(self) -> str:
        return self._picture()["text/plain"]

    def _repr_html_(self) -> str:
        return self._picture()["text/html"]

    def _ipython_display_(self) -> None:
        self.show()

    def __reduce__(self) -> Any:
        raise TypeError("a panel lives in the notebook that displays it and cannot be sent to a rank")

    # inside

    def _renew(self, busy: bool) -> None:
        """The still picture: always, where no view covers it; else when things have come to rest, and now and then."""
        rests = not busy and not self._busy_at_last
        self._busy_at_last = busy
        self._to_renew |= busy
        if not self._most_views or (self._to_renew and (rests or self._still.age_seconds >= STILL_SECONDS)):
            self._to_renew = busy
            self._still.renew(self._picture)

    def _make_widget(self) -> PanelWidget | None:
        """The widget, where there is all that one needs."""
        try:
            from kalavai_nb.panel.widget import PanelWidget

            widget = PanelWidget.made_of(STATIC, state=self._state, view=self._view, hides=self._still.hiding_css)
        except (ImportError, FileNotFoundError):
            return None
        see_arrivals(widget.comm, self._see)
        # the same, where the kernel shows nothing before its cell has ended
        widget.on_msg(lambda _, content, buffers: self._orders.take(content))
        widget.observe(lambda change: self._count(change["new"]), "_view_count")
        return widget

    def _see(self, data: dict[str, Any]) -> None:
        """A message of the front end, on the thread that reads the shell channel."""
        match data:
            case {"method": "custom", "content": content}:
                self._orders.take(content)
            case {"method": "update", "state": {"_view_count": int(views)}}:
                self._count(views)

    def _count(self, views: int | None) -> None:
        """So many views are there now. What a new one has missed comes with the next update."""
        self._views = views or 0
        self._most_views = max(self._most_views, self._views)

    def _answer(self, reply: dict[str, Any]) -> None:
        widget = self._widget
        if widget:
            with contextlib.suppress(Exception):  # closed meanwhile
                widget.send(reply)


class _Still:
    """The still picture, in as many places as it was shown."""

    def __init__(self, key: str) -> None:
        self._key, self._class = key, f"kn-still-{key}"
        self._shown = False
        self._last: dict[str, str] = {}
        self._drawn_at = 0.0

    @property
    def hiding_css(self) -> str:
        """Hides it; and in JupyterLab all of the output that it is in, which else leaves a gap."""
        # two rules: a browser that does not know :has drops the second alone
        return f".{self._class} {{ display: none }}\n{OUTPUT}:has(.{self._class}) {{ display: none }}"

    @property
    def _style(self) -> str:
        """Hides the output above, where JupyterLab says that a widget is gone, or not there yet."""
        above = f"{OUTPUT}:has(+ {OUTPUT} .{self._class})"
        widget_of_words = ":has(> .lm-Panel.jp-OutputArea-output):not(:has(.jp-OutputArea-output *))"
        return f"<style>{above}{widget_of_words} {{ display: none }}</style>"

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self._drawn_at

    def show(self, picture: dict[str, str]) -> None:
        self._draw(picture, update=False)
        self._shown = True

    def renew(self, picture: Picture) -> None:
        if self._shown and (now := picture()) != self._last:
            self._draw(now, update=True)

    def _draw(self, picture: dict[str, str], *, update: bool) -> None:
        self._last, self._drawn_at = picture, time.monotonic()
        # a notebook that was saved does not say when
        drawn = f"as of {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"
        body = f"{picture['text/html']}<div><small>{drawn}</small></div>"
        framed = f"{self._style}<div class='{self._class}'>{body}</div>"
        publish({"text/plain": f"{picture['text/plain']}\n{drawn}", "text/html": framed}, {}, self._key, update)


def _is_busy(state: State) -> bool:
    """Whether something runs that will end: a cell, a sweep, an answer of a model."""
    snapshots = [pool["snapshot"] for pool in state.get("pools", {}).values()]
    return any(
        snapshot.get("cells")
        or any(sweep["state"] == "running" for sweep in snapshot.get("sweeps", {}).values())
        or any(model.get("requests") for model in snapshot.get("models", {}).values())
        for snapshot in snapshots
    )


def _cannot(verb: str, target: str) -> tuple[bool, str]:
    return False, "this panel only shows; there is nobody to ask."
