"""Quantised weights: what they weigh, how near they are, and that models use them as they use any."""

from __future__ import annotations

import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from kalavai_nb.errors import MissingExtra, ModelError
from kalavai_nb.worker.stage import packed
from kalavai_nb.worker.stage.packed import Int8, Packed
from kalavai_nb.worker.stage.quant import QUANTS, bits_per_weight, check_quant, quantise, weight_bytes

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MOST_OF_BF16 = {"int8": 0.55, "int4": 0.35}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind: str = "Llama", dtype: torch.dtype = torch.float32, **options):
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**TINY, **options})
    model_class = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")
    torch.manual_seed(0)
    return model_class(config).to(dtype).eval()


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def greedy(step, count=8):
    ids = IDS
    for _ in range(count):
        ids = torch.cat([ids, step(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


def packed_names(model):
    return {name for name, weight in model.named_parameters() if isinstance(weight, Packed)}


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_in_the_shapes_of_smollm2_weighs_as_little_as_promised(quant, tied):
    shape = {"vocab_size": 12288, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    model = build(dtype=torch.bfloat16, tie_word_embeddings=tied, **shape, **heads)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weight_bytes(model) == pytest.approx(2 * weights, rel=1e-4)  # buffers of the rotary embedding are extra
    quantise(model, quant)
    assert weight_bytes(model) <= MOST_OF_BF16[quant] * 2 * weights
    assert weight_bytes(model) * 8 / weights == pytest.approx(bits_per_weight(quant), rel=0.01)


def test_a_weight_is_gone_before_the_next_is_packed(monkeypatch):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    alive = [weakref.ref(layer.weight) for layer in model]
    counts, pack = [], Int8._pack

    def counted(rows):
        counts.append(sum(weight() is not None for weight in alive))
        return pack(rows)

    monkeypatch.setattr(Int8, "_pack", counted)
    quantise(model, "int8")
    assert counts == [3, 2, 1]


@pytest.mark.parametrize("quant", QUANTS)
def test_no_storage_of_the_whole_weight_is_left(quant):
    layer = nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)
    quantise(layer, quant)
    held = sum(part.untyped_storage().nbytes() for part in (layer.weight.codes, layer.weight.scales))
    assert weight_bytes(layer) == held <= MOST_OF_BF16[quant] * 2 * 256 * 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("quant", "most"), [("int8", 0.02), ("int4", 0.3)])
def test_logits_stay_near(quant, most, dtype):
    model = build(dtype=dtype)
    before = logits(model)
    quantise(model, quant)
    after = logits(model)
    assert after.dtype == dtype
    assert (after - before).float().abs().mean() <= most * before.float().abs().mean()


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Gemma3Text", {"head_dim": 16}),  # scales its embeddings in a class of its own
        ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen2Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
        ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "attn_implementation": "eager"}),
    ],
)
def test_forward_uses_packed_weights_as_if_they_were_whole(kind, options, quant):
    model, twin = build(kind, **options), build(kind, **options)
    quantise(model, quant)
    for name in packed_names(model):
        owner, _, leaf = name.rpartition(".")
        whole = model.get_parameter(name).dense()
        setattr(twin.get_submodule(owner), leaf, nn.Parameter(whole, requires_grad=False))
    twin.tie_weights()
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-4, atol=1e-5)
    if "experts" in str(options):
        assert any("experts" in name for name in packed_names(model))
        assert not any(name.endswith(("gate.weight", "router.weight")) for name in packed_names(model))


@pytest.mark.parametrize("quant", QUANTS)
def test_experts_are_unpacked_one_by_one(quant):
    owner = nn.Module()
    owner.experts = nn.Parameter(torch.randn(3, 64, 96))
    quantise(owner, quant)
    expert = owner.experts[torch.tensor(1)]
    assert isinstance(expert, Packed)
    assert expert.codes.untyped_storage().data_ptr() == owner.experts.codes.untyped_storage().data_ptr()
    assert torch.equal(expert.dense(), owner.experts.dense()[1])
    assert torch.equal(owner.experts[-2].dense(), expert.dense())
    with pytest.raises(IndexError):
        owner.experts[3]


@pytest.mark.parametrize("quant", QUANTS)
def test_layer_by_layer_is_all_at_once(quant):
    at_once, by_layer = build(), build()
    quantise(at_once, quant)
    for part in (by_layer.model.embed_tokens, *by_layer.model.layers, by_layer.lm_head):
        quantise(part, quant)
    assert packed_names(at_once) == packed_names(by_layer)
    torch.testing.assert_close(logits(at_once), logits(by_layer))


class PassThrough(nn.Module):
    """In place of a layer that is elsewhere."""

    def forward(self, hidden_states, *_, **__):
        return hidden_states


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_cut_in_two_gives_the_tokens_of_the_whole(quant, tied):
    whole, first, last = (build(tie_word_embeddings=tied) for _ in range(3))
    first.model.layers[2], first.model.layers[3], first.model.norm = PassThrough(), PassThrough(), PassThrough()
    first.lm_head = PassThrough()
    last.model.layers[0], last.model.layers[1] = PassThrough(), PassThrough()
    last.model.embed_tokens = PassThrough()
    for model in (whole, first, last):
        quantise(model, quant)

    def through_both(ids):
        with torch.inference_mode():
            hidden = first.model(ids, use_cache=False).last_hidden_state
            return last(inputs_embeds=hidden, use_cache=False).logits

    torch.testing.assert_close(through_both(IDS), logits(whole))
    assert torch.equal(greedy(through_both), greedy(lambda ids: logits(whole, ids)))


@pytest.mark.parametrize("quant", QUANTS)
def test_twice_is_once_and_ties_hold(quant):
    model = build(tie_word_embeddings=True)
    quantise(model, quant)
    weight, size, before = model.lm_head.weight, weight_bytes(model), logits(model)
    assert weight is model.model.embed_tokens.weight
    quantise(model, quant)
    assert model.lm_head.weight is weight
    assert weight_bytes(model) == size
    torch.testing.assert_close(logits(model), before)


@pytest.mark.parametrize("quant", QUANTS)
def test_pieces_change_nothing(quant, monkeypatch):
    head, x = nn.Linear(64, 1000), torch.randn(3, 64)
    quantise(head, quant)
    with torch.inference_mode():
        at_once = head(x)
        monkeypatch.setitem(packed.UNPACKED_AT_ONCE, "cpu", 64 * 96)
        torch.testing.assert_close(head(x), at_once, rtol=1e-5, atol=1e-5)
    again = nn.Linear(64, 1000)
    again.load_state_dict({"weight": torch.arange(64000.0).reshape(1000, 64).sin(), "bias": head.bias})
    monkeypatch.setattr(packed, "PACKED_AT_ONCE", 64 * 96)
    whole = again.weight.detach().clone()
    quantise(again, quant)
    assert (again.weight.dense() - whole).abs().max() < (0.005 if quant == "int8" else 0.16)


@pytest.mark.parametrize("quant", QUANTS)
def test_any_other_operation_sees_the_whole_weight(quant):
    layer = nn.Linear(64, 96)
    quantise(layer, quant)
    with torch.inference_mode():
        assert torch.equal(layer.weight.transpose(-2, -1), layer.weight.dense().T)
        assert torch.equal(layer.weight[:2], layer.weight.dense()[:2])
    assert (layer.weight + 1).shape == (96, 64)


def test_rows_of_zeros_stay_zeros():
    table = nn.Embedding(40, 64, padding_idx=0)
    for quant in QUANTS:
        quantise(table, quant)
        assert not table(torch.tensor([0])).any()
        table = nn.Embedding(40, 64, padding_idx=0)


def test_what_cannot_be_packed_is_passed_over():
    odd = nn.Linear(50, 64)  # blocks would reach into the next row
    narrow = nn.Linear(64, 1)
    elsewhere = nn.Linear(64, 64, device="meta")
    whole = nn.Linear(64, 64)
    model = nn.ModuleList([odd, narrow, elsewhere, whole, nn.LayerNorm(64), PassThrough()])
    quantise(model, "int4")
    assert packed_names(model) == {"3.weight"}
    x = torch.randn(2, 50)
    torch.testing.assert_close(odd(x), functional.linear(x, odd.weight, odd.bias))
    assert weight_bytes(elsewhere) == 0


def test_a_quantised_model_stays_where_it_is():
    model = nn.Sequential(nn.Linear(64, 64))
    quantise(model, "int8")
    model.to("cpu")
    with pytest.raises(ModelError, match="Move the model first"):
        model.to(torch.bfloat16)
    assert isinstance(model[0].weight, Packed)


def test_an_unknown_quantisation_is_refused_with_the_list():
    layer = nn.Linear(64, 64)
    for call in (lambda: quantise(layer, "int3"), lambda: bits_per_weight("int3"), lambda: check_quant("int3")):
        with pytest.raises(ModelError, match=r"int3.*int8, int4"):
            call()
    assert not isinstance(layer.weight, Packed)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    packed.bitsandbytes.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install kalavai-nb\[models\]"):
        quantise(nn.Linear(64, 64), "int8")
