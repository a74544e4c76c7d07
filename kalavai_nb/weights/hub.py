"""A model of the Hugging Face hub: its configuration and tokenizer come here, of its weights only the headers."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kalavai_nb.errors import MissingExtra, ModelError
from kalavai_nb.weights.headers import header_bytes
from kalavai_nb.weights.hub_bytes import Place, brief, package, read_beginning, read_range
from kalavai_nb.weights.local import SINGLE, indexed_files, manifest_of, no_safetensors
from kalavai_nb.weights.manifest import INDEX, SMALL_FILES, Manifest, WeightFile, plain_name
from kalavai_nb.weights.ranges import Range

TIMEOUT_SECONDS = 10
# nearly all headers are shorter, so one request fetches them
HEADER_GUESS_BYTES = 1 << 17
HEADERS_AT_ONCE = 8
FETCHED_HERE = (
    *SMALL_FILES,
    INDEX,
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    "chat_template*",
)


def find(model: str) -> Manifest:
    """What ``org/name`` or ``org/name@revision`` consists of.

    Where the hub cannot be reached but an earlier download has the whole model, that is taken.

    Raises ModelError where there is no such model, or it cannot be reached or used, MissingExtra without the package.
    """
    repository, _, revision = model.partition("@")
    hub = package()
    with _sentences(repository):
        try:
            found = hub.HfApi().model_info(repository, revision=revision or None, timeout=TIMEOUT_SECONDS)
        except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError):
            raise
        except Exception as error:  # whatever the library of its HTTP client says when there is no connection
            return _downloaded(hub, model) or _unreachable(hub, repository, error)
        names = [each.rfilename for each in found.siblings or ()]
        directory = _fetch_small(hub, repository, str(found.sha), names)
        weights = _weight_names(directory, repository, names)
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            files = tuple(pool.map(lambda name: _weight_file(repository, str(found.sha), name), weights))
    small = {each: (directory / each).read_text() for each in SMALL_FILES if (directory / each).is_file()}
    return Manifest(model, "hub", str(directory), files, small, repository, str(found.sha))


def read(manifest: Manifest, wanted: Range) -> bytes:
    """These bytes, for a worker that cannot reach the hub itself. Raises ModelError where they do not come."""
    return read_range(Place(manifest.repository, manifest.revision, wanted.file), wanted)


def snapshot(manifest: Manifest) -> Path | None:
    """The directory where an earlier download put this very commit on this machine, if it did; maybe not all of it."""
    try:
        found = package().try_to_load_from_cache(manifest.repository, "config.json", revision=manifest.revision)
    except MissingExtra:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _fetch_small(hub: Any, repository: str, commit: str, names: list[str]) -> Path:
    """Fetch all that is no weights into the hub's own cache; the directory it has there."""
    if "config.json" not in names:
        raise ModelError(
            f"{repository} has no config.json, so it is no model in Hugging Face form. Has it a GGUF file? "
            "Then download that file and name it."
        )
    wanted = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in FETCHED_HERE)]
    for name in (each for each in wanted if "/" not in each):
        path = hub.hf_hub_download(
            repository, name, revision=commit, etag_timeout=TIMEOUT_SECONDS, tqdm_class=_silent(hub)
        )
        if name == "config.json":
            directory = Path(path).parent
    return directory


def _weight_names(directory: Path, repository: str, names: list[str]) -> list[str]:
    if INDEX in names:
        return indexed_files((directory / INDEX).read_text(), f"{repository}/{INDEX}", names)
    if SINGLE in names:
        return [SINGLE]
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if len(found) != 1:
        raise ModelError(no_safetensors(repository, names))
    return [plain_name(found[0])]


def _weight_file(repository: str, commit: str, name: str) -> WeightFile:
    place = Place(repository, commit, name)
    beginning, size_bytes = read_beginning(place, HEADER_GUESS_BYTES)
    length = header_bytes(beginning, f"{repository}/{name}")
    if length > len(beginning):
        beginning += read_range(place, Range(name, len(beginning), length - len(beginning)))
    return WeightFile(name, size_bytes, 0, beginning[:length])


def _downloaded(hub: Any, model: str) -> Manifest | None:
    """The model as an earlier download left it, if it is whole."""
    repository, _, revision = model.partition("@")
    try:
        directory = hub.snapshot_download(repository, revision=revision or None, local_files_only=True)
        return manifest_of(Path(directory), model)
    except (OSError, ValueError):
        return None


def _unreachable(hub: Any, repository: str, error: Exception) -> Manifest:
    raise ModelError(
        f"{repository} was taken for an id of the hub, but {hub.constants.ENDPOINT} cannot be reached from this "
        f"machine ({brief(error)}). Check the network and HF_HUB_OFFLINE, or name a directory or "
        "a GGUF file of this machine; a gated model also needs HF_TOKEN."
    ) from error


@contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """What the hub refuses, as sentences."""
    errors = package().errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} is gated: ask for access on its page, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {repository}, or it is private. Check the spelling (or the path, if a directory of "
            "this machine was meant); for a private model set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no such revision. Name a branch, tag or commit after the @.") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.EntryNotFoundError, OSError) as error:
        raise ModelError(f"the hub did not give {repository}: {brief(error)} Try again, or set HF_TOKEN.") from error


def _silent(hub: Any) -> Any:
    """A progress bar that shows nothing: small files are no progress."""
    return partial(hub.utils.tqdm, disable=True)
