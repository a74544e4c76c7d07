"""What a dataset may be: an iterable, a DataFrame, or a file. It is read lazily, from its beginning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.lm.batch import files

FORMS = "an iterable of texts or dicts, a DataFrame, or the path of a .jsonl, .csv, .tsv or .parquet file"


@dataclass(frozen=True)
class Dataset:
    """Rows that can be asked for.

    ``begin`` starts to read; ``count`` says how many there are, None where only the end will tell. ``is_kept`` is
    whether they are still there after they have been read.
    """

    name: str
    begin: Callable[[], Iterator[Any]]
    count: Callable[[], int | None]
    is_kept: bool


def read_dataset(dataset: Any) -> Dataset:
    """Raises OptionError for what is no dataset, MissingExtra for a file that needs a package."""
    if isinstance(dataset, str | Path):
        return _of_path(Path(dataset).expanduser())
    if _is_frame(dataset):
        return Dataset("a DataFrame", lambda: files.frame_rows(dataset), lambda: len(dataset), True)
    if isinstance(dataset, Mapping):
        raise OptionError(
            f"a dataset is {FORMS}; got a dict with the keys {', '.join(map(str, list(dataset)[:5]))}. Take one of its "
            "parts, or make columns into rows with pandas.DataFrame(…)."
        )
    if isinstance(dataset, bytes) or not isinstance(dataset, Iterable):
        raise OptionError(f"a dataset is {FORMS}; got {type(dataset).__name__}: {dataset!r:.80}.")
    kind = type(dataset).__name__
    if isinstance(dataset, Sized):
        return Dataset(f"a {kind}", lambda: iter(dataset), lambda: len(dataset), True)
    return Dataset(f"a {kind}", lambda: iter(dataset), lambda: None, False)


def _of_path(path: Path) -> Dataset:
    if not path.is_file():
        raise OptionError(f"there is no file {path}. A dataset is {FORMS}; a single text is given as [text].")
    kind = files.KINDS.get(path.suffix.lower())
    if kind is None:
        raise OptionError(f"{path.name} ends in {path.suffix!r}, but a dataset is {FORMS}.")
    reader = kind(path)
    return Dataset(path.name, reader.rows, reader.count, True)


def _is_frame(dataset: Any) -> bool:
    # whoever has a DataFrame has imported pandas
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(dataset, pandas.DataFrame)
