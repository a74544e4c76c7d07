"""A model in stages beside the same model in one piece: what tests and benchmarks of stages have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import transformers

from kalavai_nb.worker.stage.model import StageModel, check_supported
from tiny_models import VOCABULARY, tiny_config, tiny_model

EXACT = 1e-5
PROMPTS = (9, 7, 4, 6)
# tokens of each row in all, for a prompt and what is decoded in `lives`
LENGTHS = (16, 14, 12, 15)

Seen = tuple[int, int, torch.Tensor]


class Staged:
    """All stages of a model, in one process."""

    def __init__(self, directory: Path, cuts: Sequence[int], dtype: str = "float32") -> None:
        self.stages = [StageModel.load(directory, a, b, dtype=dtype) for a, b in pairwise(cuts)]

    def run(self, rows: Sequence[int], ids: Sequence[Sequence[int]], pads: Sequence[int] | None = None) -> torch.Tensor:
        passed = torch.tensor(ids)
        for stage in self.stages:
            passed = stage.run(rows, passed, pads)
        return passed

    def drop(self, rows: Sequence[int]) -> None:
        for stage in self.stages:
            stage.drop(rows)


def sequences(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(3, VOCABULARY, (length,)).tolist() for length in lengths]


def whole(directory: Path, ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits [S, V] of each sequence by itself, from the model in one piece, with neither cache nor padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row])).logits[0] for row in ids]


def lives(staged: Staged, ids: list[list[int]]) -> Iterator[Seen]:
    """Rows, places and logits of a batch with all that can happen to it.

    Prompts of unequal length, padded at the left, come in two pieces; one of them is all padding in the first. After
    two tokens a row joins that was prefilled apart, and one leaves; later another does.
    """
    width, at = max(PROMPTS[:3]), list(PROMPTS)
    padded = [[0] * (width - length) + ids[row][:length] for row, length in enumerate(PROMPTS[:3])]
    pads = [width - length for length in PROMPTS[:3]]
    staged.run([0, 1, 2], [row[:4] for row in padded], [min(pad, 4) for pad in pads])
    last = staged.run([0, 1, 2], [row[4:] for row in padded], [max(pad - 4, 0) for pad in pads])
    yield from zip([0, 1, 2], [8, 6, 3], last, strict=True)

    def step(rows: list[int]) -> Iterator[Seen]:
        logits = staged.run(rows, [[ids[row][at[row]]] for row in rows])
        for row, of_row in zip(rows, logits, strict=True):
            yield row, at[row], of_row
            at[row] += 1

    yield from step([0, 1, 2])
    yield from step([0, 1, 2])
    yield 3, PROMPTS[3] - 1, staged.run([3], [ids[3][: PROMPTS[3]]])[0]
    staged.drop([1])
    for _ in range(4):
        yield from step([3, 0, 2])
    yield from step([0, 2])


def worst_difference(directory: Path, layers: int = 6) -> float:
    """The largest difference of any logit, over the lives of a batch in three stages. NaN where a logit is none."""
    ids = sequences()
    expected = whole(directory, ids)
    staged = Staged(directory, [0, layers // 3, 2 * layers // 3, layers])
    differences = [(logits - expected[row][place]).abs().max() for row, place, logits in lives(staged, ids)]
    return float(torch.stack(differences).max())


def verdict(family: str, directory: Path) -> float:
    """How far stages are from the whole, for a tiny model of this family; ModelError where it is refused."""
    check_supported(tiny_config(family))
    return worst_difference(tiny_model(family, directory))
