"""Values as content: packed here, mapped there."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalavai_nb.blobs import (
    ALIGNMENT,
    MAPPED_FROM_BYTES,
    STALE_SECONDS,
    BlobStore,
    Packed,
    clear_parts,
    load,
    load_bytes,
    pack,
)

LARGE = MAPPED_FROM_BYTES // 8


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def content(packed: Packed, piece_bytes: int = 1 << 20) -> bytearray:
    """The file that the pieces make."""
    file = bytearray(packed.blob.total_bytes)
    for offset, piece, _ in packed.pieces(piece_bytes):
        file[offset : offset + len(piece)] = piece
    return file


def unpacked(value: Any) -> Any:
    packed = pack(value)
    return load_bytes(content(packed), packed.blob.sizes)


def kept(store: BlobStore, value: Any) -> tuple[Path, tuple[int, ...]]:
    """Where a value lies, and the sizes of its frames."""
    packed = pack(value)
    store.keep(packed)
    return store.path(packed.blob.digest), packed.blob.sizes


# round trips


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", [1, "a"], {"a": {1, 2}}, (1.5, ...), range(3)])
def test_plain_values_come_back(value: Any) -> None:
    assert unpacked(value) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int16).reshape(3, 4),
        np.arange(12.0).reshape(3, 4).T,
        np.arange(20)[::2],
        np.zeros((0, 3)),
        np.array(3.0),
        np.array(["a", "bc"]),
        np.array([True, False]),
        np.array([{"a": 1}, None], dtype=object),
    ],
    ids=["plain", "transposed", "strided", "empty", "scalar", "text", "bool", "object"],
)
def test_arrays_come_back(array: np.ndarray[Any, Any]) -> None:
    back = unpacked(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_arrays_in_containers_come_back() -> None:
    back = unpacked({"a": np.arange(3), "b": [np.zeros(0), np.ones((2, 2))], "c": "text"})
    assert back["a"].tolist() == [0, 1, 2]
    assert [part.shape for part in back["b"]] == [(0,), (2, 2)]
    assert back["c"] == "text"


def test_an_array_that_is_there_twice_is_packed_once_and_stays_one() -> None:
    array = np.arange(1000)
    packed = pack([array, array])
    assert len(packed.blob.sizes) == 2
    first, second = load_bytes(content(packed), packed.blob.sizes)
    assert first is second


def test_a_data_frame_comes_back() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", "y"]})
    pd.testing.assert_frame_equal(unpacked(frame), frame)


@settings(deadline=None, max_examples=30)
@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False)),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        max_leaves=8,
    ),
    st.lists(st.integers(0, 300), max_size=4),
    st.integers(1, 200),
)
def test_whatever_is_packed_comes_back_in_pieces_of_any_size(value: Any, lengths: list[int], piece_bytes: int) -> None:
    arrays = [np.arange(length, dtype=np.uint8) for length in lengths]
    packed = pack((value, arrays))
    back, back_arrays = load_bytes(content(packed, piece_bytes), packed.blob.sizes)
    assert back == value
    assert [array.tolist() for array in back_arrays] == [array.tolist() for array in arrays]


def test_what_cannot_be_pickled_raises_as_it_does() -> None:
    with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
        pack(number for number in range(3))


# memory


def test_the_memory_of_an_array_is_not_copied_to_pack_it() -> None:
    array = np.arange(LARGE)
    packed = pack({"a": array})
    assert len(packed.frames) == 2
    assert np.shares_memory(np.frombuffer(packed.frames[1], dtype=array.dtype), array)


def test_frames_are_aligned() -> None:
    packed = pack([np.zeros(n, dtype=np.uint8) for n in (1, 63, 64, 65)])
    starts: dict[int, int] = {}
    for offset, piece, _ in packed.pieces(1 << 20):
        starts[offset] = len(piece)
    assert all(offset % ALIGNMENT == 0 for offset in starts)
    assert tuple(starts.values()) == packed.blob.sizes
    assert packed.blob.total_bytes % ALIGNMENT == 0


@pytest.mark.parametrize("length", [10, LARGE])
def test_loaded_arrays_can_be_written_to(store: BlobStore, length: int) -> None:
    path, sizes = kept(store, np.zeros(length))
    array = load(path, sizes)
    array[0] = 1.0
    assert array[0] == 1.0


@pytest.mark.parametrize("length", [10, LARGE])
def test_two_loads_of_one_file_are_private(store: BlobStore, length: int) -> None:
    path, sizes = kept(store, np.zeros(length))
    before = path.read_bytes()
    first, second = load(path, sizes), load(path, sizes)
    first += 1.0
    assert not second.any()
    assert path.read_bytes() == before
    assert not load(path, sizes).any()


def test_large_arrays_are_mapped_where_they_lie(store: BlobStore) -> None:
    path, sizes = kept(store, [np.zeros(3), np.arange(LARGE)])
    _, array = load(path, sizes)
    assert array.ctypes.data % ALIGNMENT == 0
    assert not array.flags.owndata
    assert array[-1] == LARGE - 1


def test_a_mapped_array_outlives_its_file(store: BlobStore) -> None:
    path, sizes = kept(store, np.arange(LARGE))
    array = load(path, sizes)
    path.unlink()
    assert array.sum() == LARGE * (LARGE - 1) // 2


# digests


def test_equal_content_has_an_equal_digest() -> None:
    assert pack({"a": np.arange(5), "b": "x"}).blob == pack({"a": np.arange(5), "b": "x"}).blob


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(5), np.arange(6)),
        (np.arange(5), np.arange(5.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        ({"a": 1}, {"a": 2}),
        ([1, 2], (1, 2)),
        ("1", 1),
        ([np.zeros(1), np.zeros(2)], [np.zeros(2), np.zeros(1)]),
    ],
)
def test_different_content_has_a_different_digest(one: Any, other: Any) -> None:
    assert pack(one).blob.digest != pack(other).blob.digest


def test_an_array_that_was_changed_has_a_new_digest() -> None:
    array = np.zeros(LARGE)
    before = pack(array).blob
    array[-1] = 1.0
    assert pack(array).blob.digest != before.digest
    array[-1] = 0.0
    assert pack(array).blob == before


def test_a_digest_is_a_file_name() -> None:
    assert len(pack(1).blob.digest) == 64
    assert pack(1).blob.digest.isalnum()


# pieces


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 100, 10_000])
def test_pieces_reassemble(piece_bytes: int) -> None:
    packed = pack([np.arange(100, dtype=np.uint8), np.arange(30)])
    pieces = list(packed.pieces(piece_bytes))
    assert all(0 < len(piece) <= piece_bytes for _, piece, _ in pieces)
    assert sum(len(piece) for _, piece, _ in pieces) == sum(packed.blob.sizes)
    first, second = load_bytes(content(packed, piece_bytes), packed.blob.sizes)
    assert first.tolist() == list(range(100))
    assert second.tolist() == list(range(30))


def test_only_the_last_piece_is_the_last() -> None:
    lasts = [last for _, _, last in pack([np.arange(100), np.zeros(0)]).pieces(50)]
    assert lasts[-1]
    assert not any(lasts[:-1])


# the store


def test_a_store_is_for_its_owner_only(store: BlobStore) -> None:
    assert store.directory.stat().st_mode & 0o777 == 0o700


def test_a_store_may_be_opened_again(store: BlobStore) -> None:
    kept(store, "x")
    assert BlobStore(store.directory).has(pack("x").blob.digest)


def test_a_blob_appears_with_its_last_piece(store: BlobStore) -> None:
    packed = pack(np.arange(1000))
    digest, total = packed.blob.digest, packed.blob.total_bytes
    for offset, piece, last in packed.pieces(1000):
        assert not store.has(digest)
        store.write(digest, "me", offset, piece, total, last)
    assert store.has(digest)
    assert store.path(digest).stat().st_size == total
    assert load(store.path(digest), packed.blob.sizes).tolist() == list(range(1000))
    assert os.listdir(store.directory) == [digest]


def test_two_writers_of_the_same_content_do_not_meet(store: BlobStore) -> None:
    packed = pack(np.arange(1000))
    digest, total = packed.blob.digest, packed.blob.total_bytes
    pieces = list(packed.pieces(1000))
    mine, theirs = iter(pieces), iter(pieces)
    for offset, piece, last in [next(mine), next(mine)]:
        store.write(digest, "me", offset, piece, total, last)
    for offset, piece, last in theirs:
        store.write(digest, "they", offset, piece, total, last)
    assert load(store.path(digest), packed.blob.sizes).tolist() == list(range(1000))
    for offset, piece, last in mine:
        store.write(digest, "me", offset, piece, total, last)
    assert load(store.path(digest), packed.blob.sizes).tolist() == list(range(1000))
    assert os.listdir(store.directory) == [digest]


def test_what_a_writer_left_half_done_can_be_written_again(store: BlobStore) -> None:
    packed = pack(np.arange(1000))
    offset, piece, last = next(packed.pieces(1000))
    store.write(packed.blob.digest, "me", offset, piece, packed.blob.total_bytes, last)
    for offset, piece, last in packed.pieces(500):
        store.write(packed.blob.digest, "me", offset, piece, packed.blob.total_bytes, last)
    assert load(store.path(packed.blob.digest), packed.blob.sizes).tolist() == list(range(1000))


def test_a_loaded_array_stays_as_it_is_when_its_blob_is_written_again(store: BlobStore) -> None:
    packed = pack(np.arange(LARGE))
    store.keep(packed)
    array = load(store.path(packed.blob.digest), packed.blob.sizes)
    store.keep(packed)
    assert array[-1] == LARGE - 1


def test_a_blob_can_be_read_in_parts(store: BlobStore) -> None:
    packed = pack(np.arange(1000))
    store.keep(packed)
    digest, total = packed.blob.digest, packed.blob.total_bytes
    parts = [store.read(digest, offset, 700) for offset in range(0, total, 700)]
    assert b"".join(parts) == bytes(content(packed))
    assert load_bytes(b"".join(parts), packed.blob.sizes).tolist() == list(range(1000))


def test_a_dropped_blob_is_gone_and_may_be_dropped_again(store: BlobStore) -> None:
    path, _ = kept(store, "x")
    store.drop(path.name)
    store.drop(path.name)
    assert not store.has(path.name)


def test_a_blob_that_two_count_on_is_there_until_both_have_dropped_it(store: BlobStore) -> None:
    path, _ = kept(store, "x")
    assert store.hold(path.name, "ada")
    assert store.hold(path.name, "Client-../eve")
    assert store.hold(path.name, "ada")
    # through another process's eyes
    BlobStore(store.directory).drop(path.name, "ada")
    store.drop(path.name, "ada")
    store.drop(path.name)
    assert store.has(path.name)
    store.drop(path.name, "Client-../eve")
    assert not store.has(path.name)
    assert not store.hold(path.name, "ada"), "it has to be sent again"
    kept(store, "x")
    store.hold(path.name, "bob")
    other, _ = kept(store, "y")
    store.let_go("bob")
    assert store.has(path.name), "ada counts on it"
    assert store.has(other.name), "bob never did"
    store.let_go("ada")
    assert not store.has(path.name)
    store.drop(other.name)
    assert [each.name for each in store.directory.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "/etc/passwd", "a/b", "a.part", "a\n", "a b"])
def test_what_is_no_digest_is_no_path(store: BlobStore, name: str) -> None:
    for refused in (store.path, store.has, store.drop):
        with pytest.raises(ValueError, match="is no digest"):
            refused(name)


@pytest.mark.parametrize("writer", ["../../evil", "a/b"])
def test_a_writers_name_leads_nowhere_else(store: BlobStore, writer: str) -> None:
    with pytest.raises(ValueError, match=r"writer|suffix|name"):
        store.write("a" * 64, writer, 0, b"x", 64, True)
    assert os.listdir(store.directory) == []


# functions of a notebook


def test_functions_of_other_modules_are_packed_by_name() -> None:
    assert pack(os.path.join, {}).uses == set()
    assert unpacked(os.path.join) is os.path.join


def test_without_a_namespace_a_function_carries_its_globals() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("k = 3\ndef f(): return k", namespace)
    packed = pack(namespace["f"])
    assert packed.uses == set()
    assert unpacked(namespace["f"])() == 3


def test_with_its_namespace_a_function_names_what_it_uses() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("k = 3\ndef f(): return k + len([])", namespace)
    packed = pack(namespace["f"], namespace)
    assert packed.uses == {"k"}


def test_functions_of_another_namespace_keep_their_own_globals() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("k = 3\ndef f(): return k", namespace)
    packed = pack(namespace["f"], {"k": 4})
    assert packed.uses == set()
    assert load_bytes(content(packed), packed.blob.sizes)() == 3


def test_what_is_packed_is_plain_pickle() -> None:
    packed = pack([1, "a"])
    assert pickle.loads(packed.frames[0]) == [1, "a"]


# what was begun and left


def test_what_was_begun_and_left_is_taken_away_after_an_hour(store: BlobStore) -> None:
    digest, total = "a" * 64, 128
    for writer in ("gone", "busy"):
        store.write(digest, writer, 0, b"x", total, last=False)
    kept(store, "x")
    hour_ago = time.time() - STALE_SECONDS - 1
    os.utime(store.directory / f"{digest}.gone.part", (hour_ago, hour_ago))
    clear_parts(store.directory, "b")
    assert len(os.listdir(store.directory)) == 3
    store.let_go("somebody")
    left = {pack("x").blob.digest, f"{digest}.busy.part", ".lock"}
    assert set(os.listdir(store.directory)) == left
    with pytest.raises(FileNotFoundError):
        store.write(digest, "gone", 64, b"y", total, last=True)
    assert set(os.listdir(store.directory)) == left, "a late piece makes no file with a hole"


def test_what_cannot_be_kept_leaves_nothing(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(np.arange(1000))

    def full(source: Any, target: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        store.keep(packed)
    assert os.listdir(store.directory) == []
