"""What a sweep needs of its pool."""

from __future__ import annotations

from typing import Protocol

from kalavai_nb.engine import Engine


class HasEngine(Protocol):
    """An open pool, as far as a sweep needs one."""

    @property
    def engine(self) -> Engine: ...


class Displays(Protocol):
    """Something that lives in the cells that show it."""

    def show(self) -> None: ...
