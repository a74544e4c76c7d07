"""What was asked for, as a file beside the output: whoever goes on with it must ask for the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kalavai_nb.closure.fingerprint import CODE, changed
from kalavai_nb.errors import OptionError
from kalavai_nb.lm.generation import MAX_NEW_TOKENS, Sampling

VERSION = 1
FILE = "job.json"
# of a sampling, what a person asks for; the rest comes with the model
ASKED = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "logprobs")


@dataclass(frozen=True)
class Job:
    """A model as it was loaded, what its prompts are made of, and how it samples. The data is compared row by row."""

    model: str
    weights: str
    dtype: str
    quant: str | None
    prompt: str
    code: Mapping[str, str]
    sampling: Mapping[str, Any]
    dataset: str

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        draft = folder / f"{FILE}.new"
        with draft.open("w") as file:
            json.dump({"version": VERSION, **asdict(self)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / FILE)


def read_job(folder: Path) -> Job | None:
    """What was asked for here before. Raises OptionError where that cannot be read."""
    try:
        fields = json.loads((folder / FILE).read_text())
        version = fields.pop("version")
        if version == VERSION:
            return Job(**fields)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        version = "unknown"
    raise OptionError(
        f"{folder / FILE} is of the version {version}, and this is version {VERSION}. Give another out=, or "
        "resume=False to begin anew."
    )


def asked(sampling: Sampling) -> dict[str, Any]:
    """What a person asked for, as JSON has it."""
    fields = {name: getattr(sampling, name) for name in ASKED}
    # a row whose prompt leaves less room than is usual gets what is left, and is of the same job
    return {**fields, "stop": list(sampling.stop), "max_new_tokens": sampling.max_new_tokens or MAX_NEW_TOKENS}


def going_on(before: Job, now: Job, seed: int | None) -> Job:
    """The job to go on with: the same, with the seed that was drawn when it began. Raises OptionError for another."""
    kept = before.sampling["seed"]
    if seed is None or not now.sampling["temperature"]:
        now = replace(now, sampling={**now.sampling, "seed": kept})
    if differences := _differences(before, now):
        raise OptionError("; ".join(differences))
    return now


def _differences(before: Job, now: Job) -> list[str]:
    found = []
    if before.model != now.model:
        found.append(f"the model was {before.model}, and is {now.model}")
    elif before.weights != now.weights:
        found.append(f"the files of {now.model} have changed")
    pairs = [(name, getattr(before, name), getattr(now, name)) for name in ("dtype", "quant", "prompt")]
    pairs += [(name, before.sampling.get(name), now.sampling[name]) for name in ASKED]
    found += [f"{name} was {old!r:.80}, and is {new!r:.80}" for name, old, new in pairs if old != new]
    if before.prompt == now.prompt and (names := changed(dict(before.code), dict(now.code))):
        of_names = ", ".join(name for name in names if name != CODE)
        found.append(f"the function {now.prompt} has changed{f' in what it uses: {of_names}' if of_names else ''}")
    return found
