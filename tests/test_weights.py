"""Models found on the notebook's machine, and the parts of them that workers keep."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.numpy import save_file

from kalavai_nb.errors import ModelError
from kalavai_nb.weights import hub_bytes
from kalavai_nb.weights.cache import cache_root, cached_models
from kalavai_nb.weights.manifest import Manifest
from kalavai_nb.weights.mirror import Mirror
from kalavai_nb.weights.ranges import Range, merged, without
from kalavai_nb.weights.source import ModelSource

CONFIG = {"model_type": "llama", "hidden_size": 8}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KALAVAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def arrays(layers: range, width: int = 64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(layers.start)
    return {f"layers.{layer}.w": random.standard_normal((width, 16), np.float32) for layer in layers}


def model(directory: Path, width: int = 64) -> Path:
    """A model of two files with an index."""
    directory.mkdir(parents=True)
    weight_map = {}
    for name, layers in ((ONE, range(3)), (TWO, range(3, 6))):
        tensors = arrays(layers, width)
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text('{"vocab": "large"}')
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def sent(source: ModelSource) -> Any:
    """The manifest as it comes out at the other end."""
    return json.loads(json.dumps(source.manifest()))


def moved(tmp_path: Path) -> tuple[ModelSource, Any]:
    """A source, and its manifest on a machine where nothing is at its path."""
    source = ModelSource.resolve(model(tmp_path / "model"))
    manifest = source.described.to_dict() | {"directory": "/nowhere/at/all"}
    return source, json.loads(json.dumps(manifest))


def fill(mirror: Mirror, source: ModelSource, tensors: list[str]) -> list[Range]:
    missing = mirror.missing(tensors)
    for wanted in missing:
        for file, offset, length in wanted.pieces(1000):
            mirror.write(file, offset, source.read(file, offset, length))
    mirror.commit()
    return missing


def read(directory: Path, file: str, tensor: str) -> np.ndarray:
    with safe_open(directory / file, "numpy") as weights:
        value: np.ndarray = weights.get_tensor(tensor)
        return value


# ranges


def test_ranges_are_joined_where_they_touch() -> None:
    parts = [
        Range("b", 0, 5),
        Range("a", 10, 5),
        Range("a", 0, 10),
        Range("a", 12, 10),
        Range("a", 30, 1),
        Range("a", 40, 0),
    ]
    assert merged(parts) == [Range("a", 0, 22), Range("a", 30, 1), Range("b", 0, 5)]


def test_what_is_missing_of_a_range() -> None:
    assert list(without(Range("a", 10, 20), [(0, 12), (15, 18), (29, 50)])) == [Range("a", 12, 3), Range("a", 18, 11)]
    assert list(without(Range("a", 10, 20), [(0, 100)])) == []
    assert list(without(Range("a", 10, 20), [])) == [Range("a", 10, 20)]


# directories


def test_a_directory_is_found(tmp_path: Path) -> None:
    directory = model(tmp_path / "small")
    source = ModelSource.resolve(str(directory))
    assert (source.name, source.directory) == ("small", directory)
    assert source.described.small == {"config.json": json.dumps(CONFIG)}
    assert [file.name for file in source.described.files] == [ONE, TWO]
    place = source.described.tensors["layers.4.w"]
    assert (place.dtype, place.shape, place.range.length) == ("F32", (64, 16), 4096)
    assert source.read(*place.range) == arrays(range(3, 6))["layers.4.w"].tobytes()
    assert source.digest == ModelSource.resolve(directory).digest
    assert Manifest.from_dict(sent(source)) == source.described


def test_a_home_directory_and_a_single_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    save_file(arrays(range(2)), tmp_path / "m" / "model.safetensors")
    save_file(arrays(range(2)), tmp_path / "m" / "consolidated.safetensors")
    assert [file.name for file in ModelSource.resolve("~/m").described.files] == ["model.safetensors"]


@pytest.mark.parametrize("change", ["time", "config", "weights"])
def test_what_changed_has_another_digest(change: str, tmp_path: Path) -> None:
    directory = model(tmp_path / "model")
    before = ModelSource.resolve(directory)
    if change == "time":
        os.utime(directory / ONE, ns=(1, 1))
    elif change == "config":
        (directory / "config.json").write_text("{}")
    else:
        save_file(arrays(range(3), 128), directory / ONE)
    assert ModelSource.resolve(directory).digest != before.digest
    if change != "config":
        with pytest.raises(ModelError, match=r"changed while model was in use. Load the model again"):
            before.read(ONE, 600, 100)


def test_what_is_no_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    directory = tmp_path / "odd"
    directory.mkdir()
    refused(directory, r"has no config\.json.*Name the directory that `save_pretrained`")
    (directory / "adapter_config.json").write_text("{}")
    refused(directory, "holds an adapter, not a model.*merge_and_unload")
    (directory / "config.json").write_text("{}")
    refused(directory, "has a config.json but no safetensors files")
    (directory / "pytorch_model.bin").write_bytes(b"x")
    refused(directory, r"has its weights as pytorch_model\.bin.*Convert it once: `AutoModelForCausalLM")
    weights = directory / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refused(directory, "is a pointer of Git LFS.*git lfs pull")
    weights.write_bytes(b"\xff" * 100)
    refused(directory, "is no safetensors file: it has no header")
    weights.write_bytes((100).to_bytes(8, "little") + b"{")
    refused(directory, "is cut off: its header asks for 108 bytes, it has 9")
    weights.write_bytes((3).to_bytes(8, "little") + b'{"a')
    refused(directory, "the header of .* cannot be read")
    save_file(arrays(range(2)), weights)
    os.truncate(weights, weights.stat().st_size - 10)
    refused(directory, "is cut off: its header asks for .* Copy or download it again")
    refused(weights, "is a file, but no GGUF file")
    refused(tmp_path / "nothing" / "here", "there is no model")
    refused("llama three", "there is no model 'llama three': no such path.*an id of the hub looks like")


def test_an_incomplete_set_of_files_is_refused(tmp_path: Path) -> None:
    directory = model(tmp_path / "model")
    (directory / TWO).unlink()
    refused(directory, f"names 2 files, but 1 of them are not beside it, such as {TWO}")
    (directory / "model.safetensors.index.json").write_text("[]")
    refused(directory, "is no index of safetensors files")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    refused(directory, r"'\.\./\.\./secret\.safetensors' is no name of a weight file")
    (directory / "model.safetensors.index.json").unlink()
    shutil.copy(directory / ONE, directory / "copy.safetensors")
    refused(directory, "the tensor layers.0.w of model is in copy.safetensors and in")


def refused(model: str | Path, sentence: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){sentence}"):
        ModelSource.resolve(model)


# what travels


def test_a_manifest_stays_small_with_many_tensors(tmp_path: Path) -> None:
    directory = tmp_path / "many"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    names = [f"model.layers.{i}.mlp.experts.{j}.down_proj.weight" for i in range(40) for j in range(64)]
    save_file({name: np.zeros((2, 2), np.float16) for name in names}, directory / "model.safetensors")
    source = ModelSource.resolve(directory)
    assert len(source.described.files[0].header) > 250_000
    assert len(json.dumps(source.manifest())) < 60_000


def test_a_manifest_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    _, manifest = moved(tmp_path)
    [first, second] = manifest["files"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"files": [first | {"name": "../evil.safetensors"}, second]}, "is no name of a weight file"),
        ({"files": [first | {"name": "/etc/passwd"}, second]}, "is no name of a weight file"),
        ({"files": [first | {"name": ".have.safetensors\n"}, second]}, "is no name of a weight file"),
        ({"files": [first | {"size_bytes": 100}, second]}, "does not have the content it is named after"),
        ({"small": {"../../.bashrc": "evil"}}, "is no file that a manifest carries"),
        ({"digest": "../../up"}, "does not have the content it is named after"),
        ({"digest": "0" * 64}, "does not have the content it is named after"),
        ({"kind": "ftp"}, "a manifest of kind 'ftp'"),
        ({"files": [first | {"header": "?"}, second]}, "what came is no manifest"),
        ({"files": 7}, "what came is no manifest"),
    ]
    for change, sentence in cases:
        with pytest.raises(ModelError, match=sentence):
            Mirror(manifest | change)
    assert cached_models() == []


def test_a_header_that_asks_for_more_than_the_file_is_refused(tmp_path: Path) -> None:
    source, _ = moved(tmp_path)
    [first, second] = source.described.files
    short = type(first)(first.name, len(first.header) + 10, first.mtime_ns, first.header)
    lie = Manifest("model", "files", "/nowhere", (short, second), {})
    with pytest.raises(ModelError, match=f"{ONE} of model is cut off"):
        Mirror(lie.to_dict())


def test_only_the_models_files_are_read(tmp_path: Path) -> None:
    source, _ = moved(tmp_path)
    size = (tmp_path / "model" / ONE).stat().st_size
    for file, offset, length in (
        ("../secret", 0, 1),
        ("config.json", 0, 1),
        ("tokenizer.json", 0, 1),
        (ONE, size, 1),
        (ONE, -1, 2),
        (ONE, 5, -1),
        (ONE, 0, size + 1),
    ):
        with pytest.raises(ModelError, match=r"is no weight file of model|are not in"):
            source.read(file, offset, length)


# mirrors


def test_a_machine_that_has_the_model_uses_it(tmp_path: Path, cache: Path) -> None:
    source = ModelSource.resolve(model(tmp_path / "model"))
    mirror = Mirror(sent(source))
    assert (mirror.original, mirror.directory) == (True, source.directory)
    assert mirror.missing(["layers.0.w"]) == []
    with pytest.raises(ModelError, match=r"never written to"):
        mirror.write(ONE, 1000, b"x")
    assert not cache.exists()
    os.utime(source.directory / ONE, ns=(1, 1))
    assert not Mirror(sent(source)).original


def test_a_mirror_has_just_the_tensors_that_were_needed(tmp_path: Path, cache: Path) -> None:
    source, manifest = moved(tmp_path)
    mirror = Mirror(manifest)
    assert mirror.directory == cache / "models" / source.digest
    missing = fill(mirror, source, ["layers.1.w", "layers.2.w", "layers.3.w"])
    assert [(part.file, part.length) for part in missing] == [(ONE, 8192), (TWO, 4096)]
    assert mirror.missing(["layers.1.w", "layers.2.w", "layers.3.w"]) == []
    for file, tensor in ((ONE, "layers.2.w"), (TWO, "layers.3.w")):
        assert np.array_equal(read(mirror.directory, file, tensor), read(source.directory, file, tensor))
    assert not read(mirror.directory, ONE, "layers.0.w").any()
    assert (mirror.directory / "config.json").read_text() == json.dumps(CONFIG)
    index = json.loads((mirror.directory / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {f"layers.{layer}.w": ONE if layer < 3 else TWO for layer in range(6)}
    with pytest.raises(ModelError, match=r"model has no tensor layers\.9\.w"):
        mirror.missing(["layers.9.w"])


def test_a_mirror_is_added_to_and_outlives_its_pool(tmp_path: Path) -> None:
    source, manifest = moved(tmp_path)
    fill(Mirror(manifest), source, ["layers.1.w"])
    later = Mirror(manifest)
    assert later.missing(["layers.1.w"]) == []
    assert [part.length for part in later.missing(["layers.0.w", "layers.1.w", "layers.2.w"])] == [8192 // 2] * 2
    fill(later, source, ["layers.0.w", "layers.2.w"])
    assert Mirror(manifest).missing(["layers.0.w", "layers.1.w", "layers.2.w"]) == []
    [model] = cached_models()
    assert (model.name, model.kind, model.directory) == ("model", "mirror", later.directory)
    assert 0 < model.size_bytes < 100_000


def test_what_was_not_committed_is_not_there(tmp_path: Path) -> None:
    source, manifest = moved(tmp_path)
    mirror = Mirror(manifest)
    [wanted] = mirror.missing(["layers.1.w"])
    mirror.write(wanted.file, wanted.offset, source.read(wanted.file, wanted.offset, 4000))
    assert Mirror(manifest).missing(["layers.1.w"]) == [wanted]
    mirror.commit()
    assert Mirror(manifest).missing(["layers.1.w"]) == [Range(ONE, wanted.offset + 4000, 96)]
    mirror.write(ONE, wanted.offset + 4000, source.read(ONE, wanted.offset + 4000, 96))
    Mirror(manifest).commit([wanted])
    assert mirror.missing(["layers.1.w"]) == []


def test_a_mirror_that_lost_a_file_gets_it_again(tmp_path: Path) -> None:
    source, manifest = moved(tmp_path)
    mirror = Mirror(manifest)
    fill(mirror, source, ["layers.1.w", "layers.4.w"])
    os.truncate(mirror.directory / ONE, 700)
    again = Mirror(manifest)
    assert [part.file for part in again.missing(["layers.1.w", "layers.4.w"])] == [ONE]
    fill(again, source, ["layers.1.w"])
    assert np.array_equal(read(again.directory, ONE, "layers.1.w"), read(source.directory, ONE, "layers.1.w"))
    (mirror.directory / "have.json").write_text("{")
    assert len(Mirror(manifest).missing(["layers.1.w", "layers.4.w"])) == 2


def test_a_peer_can_write_only_where_tensors_are(tmp_path: Path) -> None:
    _, manifest = moved(tmp_path)
    mirror = Mirror(manifest)
    size = (mirror.directory / ONE).stat().st_size
    for file, offset in (("../../evil", 0), ("config.json", 0), ("have.json", 0), (ONE, 8), (ONE, size), (ONE, -1)):
        with pytest.raises(ModelError, match=r"is no weight file|belongs to its header|are not in"):
            mirror.write(file, offset, b"evil")
        with pytest.raises(ModelError, match=r"is no weight file|belongs to its header|are not in"):
            mirror.commit([Range(file, offset, 4)])


def one_process(manifest: Any, directory: str, tensors: list[str]) -> None:
    source, mirror = ModelSource.resolve(directory), Mirror(manifest)
    fill(mirror, source, tensors)
    for tensor in tensors:
        place = source.described.tensors[tensor]
        assert np.array_equal(
            read(mirror.directory, place.range.file, tensor), read(source.directory, place.range.file, tensor)
        )


def test_processes_of_a_machine_fill_one_mirror_at_once(tmp_path: Path) -> None:
    source, manifest = moved(tmp_path)
    names = sorted(source.described.tensors)
    spawn = multiprocessing.get_context("spawn")
    shares = [names[:2], names[1:4], names[3:], names[::2]]
    processes = [spawn.Process(target=one_process, args=(manifest, str(source.directory), share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert Mirror(manifest).missing(names) == []


def test_what_the_disk_refuses_is_a_sentence(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, manifest = moved(tmp_path)
    mirror = Mirror(manifest)
    with pytest.raises(
        ModelError, match=r"part of model needs .* GiB in .* free. Make room there, or set KALAVAI_CACHE"
    ):
        mirror.require_room([Range(ONE, 0, 1 << 60)])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KALAVAI_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"could not keep models in"):
        Mirror(manifest)
    if Path("/dev/full").exists():
        (mirror.directory / ONE).unlink()
        (mirror.directory / ONE).symlink_to("/dev/full")
        monkeypatch.setenv("KALAVAI_CACHE", str(cache))
        with pytest.raises(ModelError, match=r"No space left on device. Make room on that disk"):
            mirror.write(ONE, 1000, b"x")


def test_the_cache_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KALAVAI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "kalavai-nb"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "kalavai-nb"
    assert cached_models() == []


# the hub


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub as is asked for: one repository, on loopback, by ranges; breaks off when told."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.directory = directory
        self.commit, self.gated, self.knows_ranges = "c" * 40, False, True
        # how many answers to come are cut off in the middle, and how many are a 503
        self.breaks, self.busy = 0, 0
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if api := re.fullmatch("/api/models/some/model(/revision/(.*))?", path):
            return self._info(api[2])
        if (found := re.fullmatch("/some/model/resolve/([^/]+)/(.+)", path)) and found[1] == self.server.commit:
            return self._file(found[2])
        self._answer(404, b"", {"X-Error-Code": "RepoNotFound" if "/some/model" not in path else "EntryNotFound"})

    def _info(self, revision: str | None) -> None:
        if revision not in (None, "main", "v1", self.server.commit):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path.name} for path in sorted(self.server.directory.iterdir())]
        said = {"id": "some/model", "modelId": "some/model", "sha": self.server.commit, "siblings": siblings}
        self._answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        if self.server.gated:
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.server.asked.append((name, asked or ""))
            if self.server.busy:
                self.server.busy -= 1
                return self._answer(503, b"", {})
        content = (self.server.directory / name).read_bytes()
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": self.server.commit, "Accept-Ranges": "bytes"}
        if not asked or not self.server.knows_ranges:
            return self._answer(200, content, headers)
        start, end = map(int, asked.removeprefix("bytes=").split("-"))
        end = min(end + 1, len(content))
        self._answer(206, content[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.breaks and status == 206:
            self.server.breaks -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which is read when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    directory = model(tmp_path / "published")
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "README.md").write_text("long")
    server = Hub(directory)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    point_to(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_bytes, "PAUSE_SECONDS", 0.001)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_of_the_hub_is_found_without_its_weights(hub: Hub) -> None:
    source = ModelSource.resolve("some/model@v1")
    local = ModelSource.resolve(hub.directory)
    assert (source.name, source.described.revision) == ("some/model@v1", hub.commit)
    assert source.described.tensors == local.described.tensors
    assert source.described.small == local.described.small
    assert sorted(path.name for path in source.directory.iterdir()) == [
        "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    assert source.digest == ModelSource.resolve("some/model@v1").digest
    hub.commit = "d" * 40
    assert source.digest != ModelSource.resolve("some/model@main").digest


def test_a_long_header_is_fetched_whole(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalavai_nb.weights.hub.HEADER_GUESS_BYTES", 50)
    assert ModelSource.resolve("some/model").described.tensors == ModelSource.resolve(hub.directory).described.tensors


def test_a_worker_fetches_its_tensors_from_the_hub(hub: Hub) -> None:
    source = ModelSource.resolve("some/model")
    mirror, heard = Mirror(sent(source)), []
    assert not mirror.original
    missing = mirror.missing(["layers.1.w", "layers.2.w", "layers.5.w"])
    hub.asked.clear()
    mirror.fetch_from_hub(missing, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (12288, 12288)
    assert sorted(hub.asked) == [(part.file, f"bytes={part.offset}-{part.end - 1}") for part in missing]
    for file, tensor in ((ONE, "layers.2.w"), (TWO, "layers.5.w")):
        assert np.array_equal(read(mirror.directory, file, tensor), read(hub.directory, file, tensor))
    assert Mirror(sent(source)).missing(["layers.1.w", "layers.2.w", "layers.5.w"]) == []
    place = source.described.tensors["layers.0.w"].range
    assert source.read(*place) == arrays(range(3))["layers.0.w"].tobytes()


def test_a_broken_connection_is_taken_up_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_bytes, "PIECE_BYTES", 256)
    mirror = Mirror(sent(ModelSource.resolve("some/model")))
    names = list(mirror.manifest.tensors)
    hub.breaks, hub.busy = 6, 2
    hub.asked.clear()
    mirror.fetch_from_hub(mirror.missing(names))
    assert mirror.missing(names) == []
    assert len(hub.asked) == 10
    for tensor, place in mirror.manifest.tensors.items():
        file = place.range.file
        assert np.array_equal(read(mirror.directory, file, tensor), read(hub.directory, file, tensor))


def test_what_came_is_kept_when_the_hub_stops(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_bytes, "STRETCH_BYTES", 4096)
    monkeypatch.setattr(hub_bytes, "CONNECTIONS", 1)
    mirror = Mirror(sent(ModelSource.resolve("some/model")))
    wanted = mirror.missing(["layers.0.w", "layers.1.w", "layers.2.w"])

    def stop(done: int, total: int) -> None:
        hub.busy = 99 if done == 4096 else hub.busy

    with pytest.raises(ModelError, match=r"stopped coming from the hub, 5 times at the same byte.*What came is kept"):
        mirror.fetch_from_hub(wanted, stop)
    hub.busy = 0
    assert [part.length for part in mirror.missing(["layers.0.w", "layers.1.w", "layers.2.w"])] == [8192]


def test_an_interrupt_ends_a_fetch(hub: Hub) -> None:
    mirror = Mirror(sent(ModelSource.resolve("some/model")))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirror.fetch_from_hub(mirror.missing(["layers.0.w", "layers.5.w"]), interrupt)
    assert len(mirror.missing(["layers.0.w", "layers.5.w"])) == 2


def test_what_the_hub_refuses_is_a_sentence(hub: Hub) -> None:
    refused("other/model", "the hub has no model other/model, or it is private.*HF_TOKEN")
    refused("some/model@v9", "some/model has no such revision")
    source = ModelSource.resolve("some/model")
    mirror = Mirror(sent(source))
    missing = mirror.missing(["layers.0.w"])
    hub.knows_ranges = False
    with pytest.raises(ModelError, match=r"asked for a part of some/model/model-00001.*HF_ENDPOINT"):
        mirror.fetch_from_hub(missing)
    hub.knows_ranges, hub.gated = True, True
    with pytest.raises(ModelError, match=r"does not give .* to this machine \(HTTP 403\). Set HF_TOKEN"):
        mirror.fetch_from_hub(missing)
    shutil.rmtree(constants.HF_HUB_CACHE)
    refused("some/model", "some/model is gated: ask for access.*HF_TOKEN")
    hub.gated, hub.commit = False, "e" * 40
    with pytest.raises(ModelError, match=r"does not have .* at cccccccccccc \(HTTP 404\)"):
        mirror.fetch_from_hub(missing)


def test_a_repository_in_another_form_is_refused(hub: Hub) -> None:
    for name in (ONE, TWO, "model.safetensors.index.json"):
        (hub.directory / name).unlink()
    refused("some/model", "some/model has a config.json but no safetensors files")
    (hub.directory / "pytorch_model.bin").write_bytes(b"x")
    refused("some/model", r"some/model has its weights as pytorch_model\.bin.*Convert it once")
    (hub.directory / "config.json").unlink()
    refused("some/model", r"some/model has no config\.json.*GGUF")


def test_without_the_hub_an_earlier_download_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    refused("some/model", "was taken for an id of the hub, but http://127.0.0.1:9 cannot be reached.*HF_TOKEN")
    point_to(hub.url, monkeypatch)
    source = ModelSource.resolve("some/model")
    for name in (ONE, TWO):
        shutil.copy(hub.directory / name, source.directory)
    assert Mirror(sent(source)).original
    elsewhere = json.loads(json.dumps(source.manifest())) | {"directory": "/nowhere"}
    assert Mirror(elsewhere).directory == source.directory
    # as downloads of a whole model by huggingface_hub leave it
    reference = source.directory.parents[1] / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(hub.commit)
    point_to("http://127.0.0.1:9", monkeypatch)
    offline = ModelSource.resolve("some/model")
    assert (offline.described.kind, offline.directory.resolve()) == ("files", source.directory.resolve())
