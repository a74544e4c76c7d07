"""From what a person asks for to a run: read, compared with what is there, begun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.lm.batch.dataset import Dataset, read_dataset
from kalavai_nb.lm.batch.display import Progress, make_display
from kalavai_nb.lm.batch.feed import Feed, Model
from kalavai_nb.lm.batch.job import FILE, Job, asked, going_on, read_job
from kalavai_nb.lm.batch.output import OUTPUT, Lock, Output, set_aside
from kalavai_nb.lm.batch.prompts import Prompt, read_prompt
from kalavai_nb.lm.batch.reader import check_row
from kalavai_nb.lm.batch.replicas import Replicas, read_replicas
from kalavai_nb.lm.batch.run import MapRun
from kalavai_nb.lm.generation import Sampling, check_names, read_sampling
from kalavai_nb.lm.rings import Rings

# rows that are compared with those of before at once; the rest is while they are passed over
CHECKED_ROWS = 20
# of `lm.map`, beside those of a sampling
OTHER_OPTIONS = ("out", "resume", "replicas", "show")


def start_map(
    model: Model,
    rings: Rings,
    weights: str,
    dataset: Any,
    prompt: Any,
    *,
    out: str | Path,
    resume: bool,
    replicas: int | str,
    show: bool,
    sampling: Mapping[str, Any],
) -> MapRun:
    """See `ShardedLM.map`. ``weights`` is the digest of the model's files."""
    rings.check()
    check_names(sampling, OTHER_OPTIONS)
    chosen = read_sampling(**sampling)
    wanted = read_replicas(replicas)
    rows, maker = read_dataset(dataset), read_prompt(prompt)
    folder = _folder(out)
    lock = Lock(folder)
    try:
        job = Job(
            model.name, weights, rings.settings.dtype, rings.settings.quant,
            maker.text, maker.code, asked(chosen), rows.name,
        )  # fmt: skip
        output, job = _open(folder, job, rows, resume, sampling.get("seed"))
        chosen = replace(chosen, seed=job.sampling["seed"])
        progress = Progress(f"map {model.name} → {output.path}", had=output.finished, done=output.finished)
        for record in output.failed():
            progress.fail(str(record["error"]))
        copies = Replicas(rings, wanted)
        return _run(model, rings, rows, maker, chosen, output, copies, progress, lock, show).start()
    except BaseException:
        lock.close()
        raise


def _run(
    model: Model,
    rings: Rings,
    rows: Dataset,
    prompt: Prompt,
    sampling: Sampling,
    output: Output,
    copies: Replicas,
    progress: Progress,
    lock: Lock,
    show: bool,
) -> MapRun:
    return MapRun(
        output,
        lock,
        progress,
        make_display(show),
        lambda *on: Feed(model, rings, rows, prompt, sampling, output, copies, progress, *on),
    )


def _folder(out: str | Path) -> Path:
    if not isinstance(out, str | Path):
        raise OptionError(f"out= wants the path of a folder for the output; got {out!r:.80}.")
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"out={str(out)!r} wants a folder for the output, and cannot be one: {error}.") from None
    return folder


def _open(folder: Path, job: Job, rows: Dataset, resume: bool, seed: int | None) -> tuple[Output, Job]:
    """The output to go on with. Raises OptionError where what is there is of another job."""
    if not resume:
        set_aside(folder)
        output = Output(folder)
        job.write(folder)
        return output, job
    before = read_job(folder)
    output = Output(folder)
    try:
        if output.finished:
            job = _same(before, job, seed)
            _compare(rows, output)
        job.write(folder)
        return output, job
    except OptionError as error:
        output.close()
        raise OptionError(
            f"{folder} has {output.finished} rows of another job: {error}. Ask for the same as before, give another "
            "out=, or resume=False to begin anew."
        ) from None
    except BaseException:
        output.close()
        raise


def _same(before: Job | None, job: Job, seed: int | None) -> Job:
    if before is None:
        raise OptionError(f"there is an {OUTPUT} without a {FILE}, so no run of lm.map has made it")
    return going_on(before, job, seed)


def _compare(rows: Dataset, output: Output) -> None:
    """The first rows with those of before, where they can be read again after that."""
    if rows.is_kept:
        begun = rows.begin()
        for index, record in enumerate(islice(output.records(), CHECKED_ROWS)):
            check_row(index, begun, record)
