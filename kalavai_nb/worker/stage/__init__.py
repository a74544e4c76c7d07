"""What runs in the process of a stage: consecutive layers of a model on one device. Knows no Dask."""

from __future__ import annotations

from typing import Any


def enter(*arguments: Any) -> None:
    """First call in the process. What a stage needs is imported here, not in the worker that asks for one."""
    from kalavai_nb.worker.stage.process import main

    main(*arguments)
