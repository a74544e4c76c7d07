"""The extension of Jupyter Server: the pools of this user's notebooks, for the sidebar of JupyterLab.

It knows the pools by the files that notebooks leave in the runtime directory (`kalavai_nb.registry`), and imports
neither Dask nor torch. reader → owners.py (who is there) → pools.py (the state) → watching.py (what changes) →
handlers.py; and back to a notebook goes ordering.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp


def _load_jupyter_server_extension(server_app: ServerApp) -> None:
    """What Jupyter Server calls when it starts."""
    from kalavai_nb.server.handlers import handlers_at
    from kalavai_nb.server.pools import Pools
    from kalavai_nb.server.watching import Watching

    log = server_app.log
    watching = Watching(Pools(lambda sentence: log.warning("kalavai_nb: %s", sentence)), log)
    server_app.web_app.add_handlers(".*$", handlers_at(server_app.base_url, watching))  # type: ignore[no-untyped-call]
