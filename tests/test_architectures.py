"""Every causal language model of transformers that declares a pipeline plan is exact in stages, or refused by name."""

from pathlib import Path

import pytest
import torch
import transformers

from kalavai_nb.errors import ModelError
from kalavai_nb.worker.stage.cut import check_supported
from staged import EXACT, verdict
from tiny_models import families, tiny_config

# found to be inexact when they are cut; whoever removes one here has made it exact
REFUSED = {
    "deepseek_v4",
    "doge",
    "gemma3n_text",
    "glm_moe_dsa",
    "hrm_text",
    "hy_v4",
    "longcat_flash",
    "minimax",
}


@pytest.fixture(autouse=True)
def _quiet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", [family for family in families() if family not in REFUSED])
@pytest.mark.filterwarnings("default")  # models of transformers warn as they like
def test_stages_give_the_logits_of_the_whole_model(family: str, tmp_path: Path) -> None:
    assert verdict(family, tmp_path) <= EXACT


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_cannot_be_cut_is_refused_by_name_before_anything_is_read(family: str) -> None:
    with pytest.raises(ModelError, match=f"{family} cannot be split over devices: .+"):
        check_supported(tiny_config(family))


def test_at_least_24_architectures_are_exact() -> None:
    assert len(set(families()) - REFUSED) >= 24


@pytest.mark.parametrize("family", ["gpt2", "bloom", "mamba"])
def test_without_a_plan_it_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="declares no pipeline plan"):
        check_supported(transformers.CONFIG_MAPPING[family]())


def test_layers_that_need_token_ids_or_the_keys_of_others_are_refused() -> None:
    with pytest.raises(ModelError, match="every layer needs the token ids"):
        check_supported(transformers.CONFIG_MAPPING["gemma4_text"]())
    shares = tiny_config("gemma4_text", layer_types=["full_attention"] * 6, num_kv_shared_layers=2)
    with pytest.raises(ModelError, match="keys and values of other layers"):
        check_supported(shares)


def test_files_that_are_quantised_already_are_refused() -> None:
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ModelError, match="quantised already"):
        check_supported(config)
