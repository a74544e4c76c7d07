"""The panels of one pool: one for the whole, and one for each sweep that is displayed."""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable
from typing import Any

from kalavai_nb.engine import Engine
from kalavai_nb.panel.panel import Panel
from kalavai_nb.panel.part import part_of_sweep
from kalavai_nb.table import snapshot_bundle
from kalavai_nb.trials.sweep import Sweep
from kalavai_nb.watch import NothingMore, Watch

State = dict[str, Any]
Part = Callable[[State], State]


class Panels:
    """Makes each once, and keeps it up to date as long as the pool is open."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self._engine, self._watch = engine, watch
        self._panels: dict[Hashable, Panel] = {}

    def whole(self, widget: bool) -> Panel:
        """The panel of the pool."""

        def picture() -> dict[str, str]:
            return snapshot_bundle(self._watch.snapshot, self._engine.owner, self._watch.reason)

        return self._made(widget, picture, lambda state: state, widget=widget)

    def of_sweep(self, sweep: Sweep) -> Panel | None:
        """The panel of one sweep; None where it does not run here.

        The still picture is a line: the cell that began the sweep has a larger one.
        """
        seen = sweep.look(self._engine)
        if seen is None or seen.state != "running":
            return None
        id = seen.id

        def picture() -> dict[str, str]:
            text = repr(sweep)
            return {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}

        def is_over() -> bool:
            return not sweep.is_running

        # one that is over has a last state, and sends nothing any more
        return self._made(id, picture, lambda state: part_of_sweep(state, id), is_over=is_over, view="sweep")

    def close(self) -> None:
        """Leave the last state of each where it was displayed; what was seen last may be of a second before."""
        if self._panels:
            self._watch.look()
        for panel in list(self._panels.values()):
            panel.close()

    def _made(self, key: Hashable, picture: Callable[[], dict[str, str]], part: Part, **how: Any) -> Panel:
        self._watch.look()
        panel = self._panels.get(key) or self._new(key, picture, part, **how)
        panel.update(part(self._watch.state))
        return panel

    def _new(
        self,
        key: Hashable,
        picture: Callable[[], dict[str, str]],
        part: Part,
        *,
        is_over: Callable[[], bool] = lambda: False,
        **how: Any,
    ) -> Panel:
        panel = self._panels[key] = Panel(part(self._watch.state), picture, self._watch.order, **how)

        def hear(state: State) -> None:
            panel.update(part(state))
            if is_over():
                panel.close()
                self._panels.pop(key, None)
                raise NothingMore

        self._watch.listen(hear)
        return panel
