"""What a model consists of, small enough to travel: names, sizes and headers, not the tensors.

A manifest comes from another machine, so nothing in it is taken on trust: `Manifest.from_dict` refuses names that
are no plain file names, and what is read or written by it stays within the files it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from kalavai_nb.errors import ModelError
from kalavai_nb.weights.headers import LARGEST_HEADER_BYTES, TensorPlace, full_bytes, tensor_places
from kalavai_nb.weights.ranges import Range

SMALL_FILES = ("config.json", "generation_config.json")
INDEX = "model.safetensors.index.json"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*\.safetensors", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file: its header as it is in the file; ``mtime_ns`` is 0 where it is on the hub."""

    name: str
    size_bytes: int
    mtime_ns: int
    header: bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"header": base64.b64encode(zlib.compress(self.header, 6)).decode()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> WeightFile:
        unpacker = zlib.decompressobj()
        header = unpacker.decompress(base64.b64decode(fields["header"], validate=True), LARGEST_HEADER_BYTES + 8)
        return cls(plain_name(fields["name"]), int(fields["size_bytes"]), int(fields["mtime_ns"]), header)


@dataclass(frozen=True)
class Manifest:
    """What a model consists of, and where the machine that says so has it.

    ``kind`` is "files" for a model in ``directory``, "hub" for ``repository`` at the commit ``revision``. ``small``
    has the contents of its configuration files.
    """

    name: str
    kind: str
    directory: str
    files: tuple[WeightFile, ...]
    small: dict[str, str]
    repository: str = ""
    revision: str = ""

    @cached_property
    def digest(self) -> str:
        """The name of the content. A file that changed, or another commit, gives another."""
        digest = hashlib.sha256()
        if self.kind == "hub":
            digest.update(f"{self.repository}@{self.revision}".encode())
            return digest.hexdigest()
        for name, content in sorted(self.small.items()):
            digest.update(f"{name} {len(content)}\n{content}".encode())
        for file in self.files:
            digest.update(f"{file.name} {file.size_bytes} {file.mtime_ns} {len(file.header)}\n".encode())
            digest.update(file.header)
        return digest.hexdigest()

    @cached_property
    def tensors(self) -> dict[str, TensorPlace]:
        """Where each tensor is. Raises ModelError where two files have one of the same name."""
        places: dict[str, TensorPlace] = {}
        for file in self.files:
            for name, place in tensor_places(file.header, file.name):
                if name in places:
                    other = places[name].range.file
                    raise ModelError(
                        f"the tensor {name} of {self.name} is in {other} and in {file.name}. Keep one set of files."
                    )
                places[name] = place
        return places

    @cached_property
    def index(self) -> str:
        """The content of the index that names the file of each tensor."""
        weight_map = {name: place.range.file for name, place in self.tensors.items()}
        size_bytes = sum(place.range.length for place in self.tensors.values())
        return json.dumps({"metadata": {"total_size": size_bytes}, "weight_map": weight_map})

    def ranges(self, tensors: Iterable[str]) -> list[Range]:
        """Where these tensors are. Raises ModelError for one that the model does not have."""
        wanted = set(tensors)
        if unknown := wanted - self.tensors.keys():
            raise ModelError(f"{self.name} has no tensor {min(unknown)}, which a stage of it needs. Is it whole?")
        return [self.tensors[name].range for name in wanted]

    def file(self, name: str) -> WeightFile:
        """The file of this name. Raises ModelError where the model has none."""
        for file in self.files:
            if file.name == name:
                return file
        raise ModelError(f"{name!r} is no weight file of {self.name}; it has {', '.join(f.name for f in self.files)}.")

    def check_within(self, wanted: Range) -> None:
        """Raises ModelError for a range that is not within a file of this model."""
        size_bytes = self.file(wanted.file).size_bytes
        if wanted.offset < 0 or wanted.length < 0 or wanted.end > size_bytes:
            raise ModelError(f"bytes {wanted.offset} to {wanted.end} are not in {wanted.file}, which has {size_bytes}.")

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can say it; headers are packed."""
        fields = {
            name: getattr(self, name) for name in ("name", "kind", "directory", "small", "repository", "revision")
        }
        return fields | {"digest": self.digest, "files": [file.to_dict() for file in self.files]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Manifest:
        """What another machine sent. Raises ModelError for what is no manifest, or one that names foreign files."""
        try:
            manifest = cls(
                name=str(fields["name"]),
                kind=str(fields["kind"]),
                directory=str(fields["directory"]),
                files=tuple(map(WeightFile.from_dict, fields["files"])),
                small={_small_name(name): str(content) for name, content in fields["small"].items()},
                repository=str(fields["repository"]),
                revision=str(fields["revision"]),
            )
            _check(manifest, str(fields["digest"]))
        except (KeyError, TypeError, AttributeError, ValueError, zlib.error) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"what came is no manifest ({error!r}). Use one version on all machines.") from error
        return manifest


def plain_name(name: object) -> str:
    """The name of a weight file, if it is one. Raises ModelError for one that could lead elsewhere."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name of a weight file: a plain name that ends in .safetensors is.")
    return name


def _small_name(name: object) -> str:
    if name not in SMALL_FILES:
        raise ModelError(f"{name!r} is no file that a manifest carries: {' and '.join(SMALL_FILES)} are.")
    return str(name)


def _check(manifest: Manifest, digest: str) -> None:
    if manifest.kind not in ("files", "hub"):
        raise ModelError(f"a manifest of kind {manifest.kind!r} came. Use one version on all machines.")
    if not _DIGEST.fullmatch(digest) or digest != manifest.digest:
        raise ModelError(f"the manifest of {manifest.name} does not have the content it is named after.")
    for file in manifest.files:
        if file.size_bytes < full_bytes(file.header, file.name):
            raise ModelError(
                f"{file.name} of {manifest.name} is cut off: tensors lie beyond its {file.size_bytes} bytes."
            )
