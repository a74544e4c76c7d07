"""The part of a model that a worker's machine has.

Its files are as long as the model's and begin with the same headers, so whatever reads safetensors reads them; only the
tensors that some stage on this machine needed are in them, the rest is a hole that takes no room. What was written is
recorded, so another stage, another process or the next pool adds to it and nothing comes twice.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kalavai_nb.errors import ModelError
from kalavai_nb.weights.cache import GIB, disk_errors, label, locked, models_directory, require_room, write_whole
from kalavai_nb.weights.headers import read_header
from kalavai_nb.weights.hub import snapshot
from kalavai_nb.weights.hub_bytes import Place, fetch
from kalavai_nb.weights.manifest import INDEX, Manifest, WeightFile
from kalavai_nb.weights.ranges import Range, merged, total_bytes, without
from kalavai_nb.weights.record import Record

Progress = Callable[[int, int], None]


class Mirror:
    """What this machine has of the model of a manifest.

    ``original`` says that the directory the manifest names is on this machine too, unchanged: nothing has to come.
    Several mirrors of one model, in one process or many, may be filled at once.

    Raises ModelError for a manifest that cannot be trusted, or where this machine cannot keep files.
    """

    def __init__(self, manifest: Mapping[str, Any], cache_root: Path | None = None) -> None:
        self.manifest = Manifest.from_dict(manifest)
        self._written: list[Range] = []
        self._writing = threading.Lock()
        here = find_unchanged(self.manifest)
        self.original = here is not None
        if here:
            self.directory = here
            return
        self.directory = models_directory(cache_root) / self.manifest.digest
        self._record = Record(self.directory)
        with disk_errors(f"make a place for {self.manifest.name} in {self.directory}"):
            self._prepare()

    def missing(self, tensors: Iterable[str]) -> list[Range]:
        """Where the bytes of these tensors are that this machine does not have, in as few ranges as there can be.

        Raises ModelError for a tensor that the model does not have.
        """
        wanted = merged(self.manifest.ranges(tensors))
        if self.original:
            return []
        present = self._record.spans()
        return [gap for part in wanted for gap in without(part, present.get(part.file, []))]

    def require_room(self, ranges: Iterable[Range]) -> None:
        """Raises ModelError where the disk has no room for these ranges."""
        require_room(self.directory, total_bytes(ranges), f"this machine's part of {self.manifest.name}")

    def write(self, file: str, offset: int, piece: bytes) -> None:
        """Fill a stretch of a file; it counts when it is committed.

        Raises ModelError for a stretch that holds no tensors, and where the disk is full.
        """
        if not piece:
            return
        self._check_writable(Range(file, offset, len(piece)))
        with (
            disk_errors(f"write {len(piece) / GIB:.3f} GiB of {self.manifest.name} to {self.directory}"),
            open(self.directory / file, "r+b") as out,
        ):
            out.seek(offset)
            out.write(piece)
        with self._writing:
            self._written.append(Range(file, offset, len(piece)))

    def commit(self, ranges: Iterable[Range] | None = None) -> None:
        """From now on these ranges are here, even if the machine loses power. By default all that this mirror wrote."""
        with self._writing:
            written = merged(self._written if ranges is None else [Range(*each) for each in ranges])
        for each in written:
            self._check_writable(each)
        with disk_errors(f"record what of {self.manifest.name} is in {self.directory}"):
            for file in {each.file for each in written}:
                _flush(self.directory / file)
            self._record.add(written)
        with self._writing:
            self._written = [each for each in self._written if not _covered(each, written)]

    def fetch_from_hub(
        self, ranges: Iterable[Range], on_progress: Progress = lambda done_bytes, total_bytes: None
    ) -> None:
        """Fetch ranges of a model of the hub; what came is kept whatever happens.

        ``on_progress`` hears, from several threads but never two at once, how many bytes of how many came.

        Raises ModelError for a model of elsewhere, where the disk has no room, and where the hub does not give them.
        """
        if self.manifest.kind != "hub":
            raise ModelError(f"{self.manifest.name} is not of the hub: its tensors come from the notebook's machine.")
        ranges = [Range(*each) for each in ranges]
        for each in ranges:
            self._check_writable(each)
        self.require_room(ranges)
        fetch(self._place, ranges, self.write, self.commit, on_progress)

    def _place(self, file: str) -> Place:
        return Place(self.manifest.repository, self.manifest.revision, file)

    def _check_writable(self, wanted: Range) -> None:
        if self.original:
            raise ModelError(f"{self.directory} has {self.manifest.name} itself, which is never written to.")
        self.manifest.check_within(wanted)
        if wanted.offset < len(self.manifest.file(wanted.file).header):
            raise ModelError(f"byte {wanted.offset} of {wanted.file} belongs to its header, which is here already.")

    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        with locked(self._record.lock):
            label(self.directory, self.manifest.name, "mirror")
            for name, content in [*self.manifest.small.items(), (INDEX, self.manifest.index)]:
                write_whole(self.directory / name, content)
            for file in self.manifest.files:
                self._prepare_file(file)

    def _prepare_file(self, file: WeightFile) -> None:
        path = self.directory / file.name
        if path.exists() and path.stat().st_size == file.size_bytes:
            return
        self._record.forget(file.name)
        with open(path, "wb") as out:
            out.write(file.header)
            out.truncate(file.size_bytes)


def find_unchanged(manifest: Manifest) -> Path | None:
    """The directory of this machine that has the whole model as it is in the manifest, if there is one."""
    named = Path(manifest.directory)
    if has_unchanged(named, manifest):
        return named
    downloaded = snapshot(manifest) if manifest.kind == "hub" else None
    return downloaded if downloaded and has_unchanged(downloaded, manifest) else None


def has_unchanged(directory: Path, manifest: Manifest) -> bool:
    """Whether a directory of this machine has all files of a manifest, as they were when it was made."""
    try:
        return all(_same(directory / file.name, file) for file in manifest.files) and all(
            (directory / name).read_text() == content for name, content in manifest.small.items()
        )
    except (OSError, ModelError, UnicodeDecodeError):
        return False


def _same(path: Path, file: WeightFile) -> bool:
    found = path.stat()
    # a commit of the hub never changes, so there the size says enough
    if found.st_size != file.size_bytes or (file.mtime_ns and found.st_mtime_ns != file.mtime_ns):
        return False
    return read_header(path) == file.header


def _covered(wanted: Range, by: list[Range]) -> bool:
    return any(each.file == wanted.file and each.offset <= wanted.offset and wanted.end <= each.end for each in by)


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fdatasync(file.fileno())
