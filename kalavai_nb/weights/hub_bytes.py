"""Bytes of a file of the hub, by range requests that go on where a connection broke."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kalavai_nb.errors import MissingExtra, ModelError
from kalavai_nb.weights.ranges import Range, total_bytes

PIECE_BYTES = 1 << 20
# what one connection fetches before it is recorded: what is lost at most when a worker dies
STRETCH_BYTES = 64 << 20
CONNECTIONS = 4
# without a byte in between
TRIES = 5
PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 8.0

Store = Callable[[int, bytes], None]


@dataclass(frozen=True)
class Place:
    """A file of a repository of the hub, at a commit."""

    repository: str
    commit: str
    file: str

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}"


def package() -> Any:
    """The package huggingface_hub. Raises MissingExtra where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise MissingExtra(
            "a model of the hub needs huggingface_hub, which is not installed. Run: pip install 'kalavai-nb[models]'"
        ) from error
    return huggingface_hub


def read_beginning(place: Place, length: int) -> tuple[bytes, int]:
    """(so many bytes from the beginning, or all of a shorter file; the size of the file)"""
    with _response(place, 0, length) as response:
        content = bytes(response.read())
        size_bytes = int(response.headers["content-range"].rpartition("/")[2])
    return content, size_bytes


def read_range(place: Place, wanted: Range) -> bytes:
    """The bytes of a range. Raises ModelError where they do not come."""
    return b"".join(piece for _, piece in stream(place, wanted))


def stream(place: Place, wanted: Range) -> Iterator[tuple[int, bytes]]:
    """(offset, piece) until the range is there; a connection that breaks is taken up where it was.

    Raises ModelError where the hub refuses, or no byte came in several tries.
    """
    offset, tries = wanted.offset, 0
    while offset < wanted.end:
        error: Exception | None = None
        try:
            with _response(place, offset, wanted.end) as response:
                for piece in response.iter_bytes(PIECE_BYTES):
                    yield offset, piece
                    offset, tries = offset + len(piece), 0
        except ModelError:
            raise
        except Exception as broken:  # the hub's client changed its HTTP library between versions, and with it this type
            if refusal := _refusal(place, broken):
                raise refusal from broken
            error = broken
        if offset < wanted.end:
            tries += 1
            _pause(place, tries, error)


def fetch(
    places: Callable[[str], Place],
    ranges: Iterable[Range],
    write: Callable[[str, int, bytes], None],
    commit: Callable[[list[Range]], None],
    on_progress: Callable[[int, int], None],
) -> None:
    """Fetch ranges over a few connections at once; each stretch is committed when it is whole.

    Raises ModelError for the first that does not come; stretches that came before stay.
    """
    stretches = [stretch for wanted in ranges for stretch in wanted.pieces(STRETCH_BYTES)]
    done = _Done(total_bytes(stretches), on_progress)

    def one(stretch: Range) -> None:
        for offset, piece in stream(places(stretch.file), stretch):
            if done.stopped.is_set():
                return
            write(stretch.file, offset, piece)
            done.add(len(piece))
        commit([stretch])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            for each in as_completed([pool.submit(one, stretch) for stretch in stretches]):
                each.result()
        except BaseException:
            done.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Done:
    """How much has come over all connections, and whether they should end."""

    def __init__(self, total_bytes: int, on_progress: Callable[[int, int], None]) -> None:
        self.stopped = threading.Event()
        self._bytes, self._total_bytes, self._on_progress = 0, total_bytes, on_progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._bytes += count
            self._on_progress(self._bytes, self._total_bytes)


@contextmanager
def _response(place: Place, start: int, end: int) -> Iterator[Any]:
    """The hub's response to a request for these bytes, which is of them and no others."""
    hub = package()
    url = hub.hf_hub_url(place.repository, place.file, revision=place.commit)
    asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    headers, timeout = hub.utils.build_hf_headers() | asked, hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    with hub.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        if response.status_code >= 400:
            response.read()
        hub.utils.hf_raise_for_status(response)
        _check_partial(response, start, place)
        yield response


def _check_partial(response: Any, start: int, place: Place) -> None:
    came = response.headers.get("content-range", "")
    if response.status_code != 206 or not came.startswith(f"bytes {start}-"):
        raise ModelError(
            f"asked for a part of {place} from byte {start}, but {response.url.host} sent {came or 'all of it'}. Parts "
            "are needed; is a proxy or mirror (HF_ENDPOINT) between that does not know ranges?"
        )


def _refusal(place: Place, error: Exception) -> ModelError | None:
    """The sentence for an answer that trying again would not change."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelError(
            f"the hub does not give {place} to this machine (HTTP {status}). Set HF_TOKEN there, or run `hf auth "
            "login`, with an account that has access."
        )
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return ModelError(
            f"the hub does not have {place} at {place.commit[:12]} (HTTP {status}). Load the model again."
        )
    return None


def brief(error: Exception) -> str:
    """The first line of what an error says; those of the hub go on with links."""
    return str(error).partition("\n")[0] or type(error).__name__


def _pause(place: Place, tries: int, error: Exception | None) -> None:
    if tries >= TRIES:
        reason = brief(error) if error else "it ended early"
        raise ModelError(
            f"{place} stopped coming from the hub, {tries} times at the same byte ({reason}). What came is kept: load "
            "the model again to go on."
        ) from error
    time.sleep(min(PAUSE_SECONDS * 2 ** (tries - 1), LONGEST_PAUSE_SECONDS))
