"""What a person names when they ask for a model, on the notebook's machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kalavai_nb.errors import ModelError
from kalavai_nb.weights import hub
from kalavai_nb.weights.cache import disk_errors
from kalavai_nb.weights.gguf import convert
from kalavai_nb.weights.local import manifest_of
from kalavai_nb.weights.manifest import Manifest
from kalavai_nb.weights.ranges import Range

Progress = Callable[[int, int], None]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class ModelSource:
    """A model, found. ``directory`` has its configuration and tokenizer; of a model of the hub, not the weights.

    ``described`` is what it consists of; `manifest` is the same as it travels.
    """

    described: Manifest

    @classmethod
    def resolve(
        cls, model: str | Path, *, dtype: str = "auto", on_progress: Progress = lambda done, total: None
    ) -> ModelSource:
        """Find the model: a directory in Hugging Face form, a GGUF file (or a directory with one), or an id of the hub.

        Weights of the hub are not fetched here: workers fetch what they need. A GGUF file is converted once, into the
        cache, as ``dtype`` ("auto" is "bfloat16"); the other forms stay as they are. ``on_progress`` hears how many
        bytes of how many are done.

        Raises ModelError for what is not there or cannot be used, MissingExtra where a package for it is missing.
        """
        path = Path(model).expanduser()
        with disk_errors(f"look at {path}"):
            gguf = _gguf_file(path)
        if gguf:
            return cls(manifest_of(convert(gguf, dtype, on_progress), gguf.stem))
        if path.is_dir():
            return cls(manifest_of(path.resolve(), path.resolve().name))
        if path.exists():
            raise ModelError(
                f"{path} is a file, but no GGUF file. Name the directory of a model that has config.json and "
                "safetensors files, or a file that ends in .gguf."
            )
        if not _HUB_ID.fullmatch(str(model)):
            raise ModelError(
                f"there is no model {str(model)!r}: no such path is on this machine, and an id of the hub looks like "
                "org/name or org/name@revision. Check the spelling, or where the notebook runs."
            )
        return cls(hub.find(str(model)))

    @property
    def name(self) -> str:
        return self.described.name

    @property
    def directory(self) -> Path:
        return Path(self.described.directory)

    @property
    def digest(self) -> str:
        return self.described.digest

    def manifest(self) -> dict[str, Any]:
        """What the model consists of, as JSON can say it: see `Manifest`."""
        return self._manifest

    def read(self, file: str, offset: int, length: int) -> bytes:
        """These bytes of one of the model's safetensors files, for a worker that does not have them.

        Raises ModelError for what is not in a file of the model, and for a file that changed since it was found.
        """
        self.described.check_within(Range(file, offset, length))
        if self.described.kind == "hub":
            return hub.read(self.described, Range(file, offset, length))
        path = self.directory / file
        with disk_errors(f"read {path}"), open(path, "rb") as weights:
            weights.seek(offset)
            piece = weights.read(length)
            changed = path.stat().st_mtime_ns != self.described.file(file).mtime_ns
        if changed or len(piece) != length:
            raise ModelError(f"{path} changed while {self.name} was in use. Load the model again.")
        return piece

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return self.described.to_dict()


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means, if it means one."""
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(each for each in path.iterdir() if each.suffix.lower() == ".gguf")
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ModelError(f"{path} has {len(found)} GGUF files. Name one of them: {names}.")
    return found[0] if found else None
