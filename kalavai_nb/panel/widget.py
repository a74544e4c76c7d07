"""The panel as a widget of Jupyter. Imported where one is made: ipywidgets and anywidget take their time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


class PanelWidget(anywidget.AnyWidget):
    """A model with one trait that changes, ``state``; the view is ours in all front ends.

    ``hides`` is CSS that the view puts into the page for as long as it is there.
    """

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    view = traitlets.Unicode("pool").tag(sync=True)
    hides = traitlets.Unicode().tag(sync=True)

    @classmethod
    def made_of(cls, static: Path, **traits: Any) -> PanelWidget:
        """A widget whose view is in this directory. Raises FileNotFoundError where that has not been built."""
        style = static / "panel.css"
        return cls(
            _esm=(static / "panel.js").read_text(encoding="utf-8"),
            _css=style.read_text(encoding="utf-8") if style.exists() else "",
            # counted by the front end from here on
            _view_count=0,
            **traits,
        )

    def bundle(self) -> dict[str, Any]:
        """What shows it. The text is empty: beside it there is a still picture for those who cannot show widgets."""
        view = {"version_major": 2, "version_minor": 1, "model_id": self.model_id}
        return {WIDGET_MIME: view, "text/html": "<span></span>", "text/plain": ""}
