"""Prints how exact every architecture is in three stages: `python tests/benchmarks/architectures.py [family …]`.

Tiny random models, each against the same model in one piece; unequal prompts padded at the left, prefilled in pieces,
with a row that joins late and one that leaves early.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(asked: list[str]) -> None:
    import torch
    import transformers

    from kalavai_nb.errors import ModelError
    from staged import EXACT, verdict
    from tiny_models import families

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    counts = {"exact": 0, "refused": 0, "WRONG": 0}
    for family in asked or families():
        with tempfile.TemporaryDirectory() as directory:
            try:
                worst = verdict(family, Path(directory))
                word, note = ("exact" if worst <= EXACT else "WRONG"), f"{worst:.1e}"
            except ModelError as error:
                word, note = "refused", str(error).split(": ", 1)[1].split(". Choose")[0]
        counts[word] += 1
        print(f"{family:22s} {word:8s} {note}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
