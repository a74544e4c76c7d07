"""Rows of files and tables, one after the other: JSON lines, CSV, Parquet, DataFrames."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kalavai_nb.errors import MissingExtra

# a larger file is not read twice only to say how many rows it has
COUNT_BYTES = 1 << 28
PARQUET_ROWS = 64
# the longest text of a CSV cell; Python's own limit of 128 KiB is less than a long document
CELL_CHARACTERS = 1 << 30


@dataclass(frozen=True)
class Unreadable:
    """A row that is there and cannot be read: what of it there is, and why."""

    text: str
    reason: str


class Reader(Protocol):
    """A file that has rows."""

    def rows(self) -> Iterator[Any]: ...

    def count(self) -> int | None: ...


class JsonLines:
    """A value in each line; empty lines are no rows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self) -> Iterator[Any]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield self._row(number, line)

    def count(self) -> int | None:
        if self._path.stat().st_size > COUNT_BYTES:
            return None
        with self._path.open("rb") as file:
            return sum(1 for line in file if line.strip())

    def _row(self, number: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            text = line.decode("utf-8", "backslashreplace").strip()
            return Unreadable(text, f"line {number} of {self._path.name} is no JSON: {error}")


class Csv:
    """A dict for each line after the one with the names of columns. All values are text; an empty cell is None."""

    separator = ","

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self) -> Iterator[Any]:
        lines = self._lines()
        names = next(lines, [])
        for cells in lines:
            yield self._row(names, cells)

    def count(self) -> int | None:
        if self._path.stat().st_size > COUNT_BYTES:
            return None
        return max(0, sum(1 for _ in self._lines()) - 1)

    def _lines(self) -> Iterator[list[str]]:
        csv.field_size_limit(max(csv.field_size_limit(), CELL_CHARACTERS))
        with self._path.open(newline="", encoding="utf-8-sig", errors="backslashreplace") as file:
            yield from filter(None, csv.reader(file, delimiter=self.separator))

    def _row(self, names: list[str], cells: list[str]) -> Any:
        if len(cells) != len(names):
            reason = f"{self._path.name} has {len(names)} columns, and this row has {len(cells)}"
            return Unreadable(self.separator.join(cells), reason)
        return {name: cell or None for name, cell in zip(names, cells, strict=True)}


class Tsv(Csv):
    """The same with tabs."""

    separator = "\t"


class Parquet:
    """Read in groups of a few rows. Raises MissingExtra without pyarrow."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingExtra(
                f"{path.name} is a Parquet file, and to read it a package is missing; pip install pyarrow"
            ) from None
        self._path, self._parquet = path, parquet

    def rows(self) -> Iterator[Any]:
        with self._parquet.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                yield from batch.to_pylist()

    def count(self) -> int | None:
        count: int = self._parquet.read_metadata(self._path).num_rows
        return count


KINDS: Mapping[str, type[JsonLines] | type[Csv] | type[Parquet]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": Csv,
    ".tsv": Tsv,
    ".parquet": Parquet,
    ".pq": Parquet,
}


def frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """Rows of a DataFrame as dicts, missing values as None.

    An index that says more than the place of a row comes first, under its names, or as "index" where it has none.
    """
    import pandas as pd

    index = frame.index
    is_place = isinstance(index, pd.RangeIndex) and index.name is None and index.start == 0 and index.step == 1
    levels = [] if is_place else [str(name) if name is not None else "index" for name in index.names]
    columns = [str(column) for column in frame.columns]
    for key, cells in zip(index, frame.itertuples(index=False, name=None), strict=True):
        keys = key if isinstance(key, tuple) else (key,)
        pairs = (*zip(levels, keys, strict=False), *zip(columns, cells, strict=True))
        yield {name: None if pd.api.types.is_scalar(cell) and pd.isna(cell) else cell for name, cell in pairs}
