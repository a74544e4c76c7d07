"""Fixtures: machines on a network of their own; where none can be had, a line that nobody overlooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Network, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this directory, and say so in capitals, where this machine cannot have hosts."""
    if reason := why_not():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"NO TEST OF MACHINES ON A NETWORK WAS RUN: {reason}"))


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A network for one test."""
    with Network(tmp_path) as network:
        yield network
