"""Linear layers for few rows: the same products in another form, where that is faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kalavai_nb.worker.stage import few_rows
from kalavai_nb.worker.stage.few_rows import MOST_ROWS, quicken


@pytest.fixture(params=["as it is", "turned", "chosen"])
def forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either form on its own, whatever is faster here, and the choice by time."""
    if request.param != "chosen":
        favoured = (few_rows._turned, few_rows._turned_as_two) if request.param == "turned" else (nn.functional.linear,)
        monkeypatch.setattr(few_rows._Choice, "_seconds", lambda self, form, x: 1.0 if form in favoured else 9.0)
    return str(request.param)


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same(forms: str, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(40, 96, bias), nn.Linear(96, 17, bias))
    quick = nn.Sequential(nn.Linear(40, 96, bias), nn.Linear(96, 17, bias))
    quick.load_state_dict(plain.state_dict())
    quicken(quick)
    with torch.inference_mode():
        for shape in [(1, 1, 40), (2, 1, 40), (1, 3, 40), (2, 4, 40), (5, 40), (MOST_ROWS + 1, 1, 40), (0, 40), (40,)]:
            x = torch.randn(shape)
            assert quick(x).shape == plain(x).shape
            assert torch.allclose(quick(x), plain(x), atol=1e-5)


def test_other_types_and_classes_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(8, 8).bfloat16(), Own(8, 8), nn.Linear(8, 8, device="meta"), nn.Embedding(8, 8)])
    quicken(model)
    assert not any("forward" in vars(module) for module in model)
