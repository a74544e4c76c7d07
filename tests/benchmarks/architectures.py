"""How exact every architecture is in three stages: `python -m tests.benchmarks.architectures [family …]`.

Tiny random models, each against the same model in one piece; unequal prompts padded at the left, prefilled in pieces,
with a row that joins late and one that leaves early.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.table import Row


def measure() -> Iterator[Row]:
    """One row for all of them."""
    verdicts = Counter(verdict for _, verdict, _ in _verdicts())
    ours = f"{verdicts['exact']} exact, {verdicts['refused']} refused by name, {verdicts['WRONG']} wrong"
    what = f"{verdicts.total()} architectures of transformers in three stages, against the whole model"
    yield Row(what, ours, must="0 wrong", met=not verdicts["WRONG"])


def _verdicts(asked: list[str] | None = None) -> Iterator[tuple[str, str, str]]:
    """Of each family its name, exact, refused or WRONG, and how far or why."""
    import torch
    import transformers

    from kalavai_nb.errors import ModelError
    from staged import EXACT, verdict
    from tiny_models import families

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in asked or families():
        with tempfile.TemporaryDirectory() as directory:
            try:
                worst = verdict(family, Path(directory))
                yield family, "exact" if worst <= EXACT else "WRONG", f"{worst:.1e}"
            except ModelError as error:
                yield family, "refused", str(error).split(": ", 1)[1].split(". Choose")[0]


if __name__ == "__main__":
    for line in _verdicts(sys.argv[1:]):
        print("{:22s} {:8s} {}".format(*line), flush=True)
