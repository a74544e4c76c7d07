"""A plan in words and tables: text for terminals and saved notebooks, plain HTML for everything else."""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kalavai_nb.planner.growth import ARTICLE_NOTE, Outlook
from kalavai_nb.planner.quants import Quant
from kalavai_nb.planner.split import Split, Stage

if TYPE_CHECKING:
    from kalavai_nb.planner.plan import Plan
    from kalavai_nb.planner.rows import Row

GIB, MIB = 2**30, 2**20
LINE_CHARACTERS = 110
_NAMES = {"int8": "int8 (Q8_0)", "Q4_K_M": "Q4_K_M (int4)"}
_RAISED = str.maketrans("123456789", "¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Table:
    """A heading, rows of cells below column names, and notes below them. ``strong`` is the row that was asked for."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: int | None = None


def plan_text(plan: Plan) -> str:
    """The plan in lines."""
    tables = [_text_of(table) for table in _tables(plan)]
    return "\n\n".join(["\n".join(_wrapped(_title(plan))), *tables, *_wrapped(_assumed(plan))])


def plan_html(plan: Plan) -> str:
    """The same, in tables that follow the front end's own style."""
    title = "".join(f"<div>{html.escape(line)}</div>" for line in _title(plan))
    notes = "".join(f"<div><small>{html.escape(line)}</small></div>" for line in _assumed(plan))
    return f"{title}{''.join(_html_of(table) for table in _tables(plan))}{notes}"


def stage_table(split: Split) -> Table:
    """Device, layers, memory and speed of each stage."""
    spares = f"; {_count(len(split.spares), 'spare')}" if split.spares else ""
    seconds = split.seconds_per_token
    speed = f"a token takes {_milliseconds(seconds)} ms at best" if seconds is not None else "speed is not known"
    ring = f", {_milliseconds(split.ring_seconds)} of them on the way" if seconds and split.ring_seconds else ""
    return Table(
        f"{_count(len(split.stages), 'stage')} at {split.quant.name}{spares}",
        ("#", "device", "layers", "weights", "KV cache", "in all", "of usable", "ms a token"),
        tuple(_stage_row(number, stage) for number, stage in enumerate(split.stages)),
        (f"{speed}{ring}",),
    )


def _title(plan: Plan) -> list[str]:
    shape = plan.shape
    active = f" ({_params(shape.active_params)} active)" if shape.active_params < shape.params else ""
    cache = f"KV cache {shape.kv_bytes(plan.max_len, plan.max_batch) / GIB:.2f} GiB for {plan.max_len:,} tokens"
    times = f" × {plan.max_batch}" if plan.max_batch > 1 else ""
    model = f"{shape.name}: {_params(shape.params)} parameters{active}, {len(shape.layers)} layers, {cache}{times}"
    kinds = Counter(seat.name for seat in plan.seats)
    names = ", ".join(f"{number} × {name}" for name, number in kinds.items())
    free = sum(seat.free_bytes for seat in plan.seats) / GIB
    fits = f"fits at {plan.quant.name}" if plan.fits else str(plan.shortfall)
    return [model, f"devices: {names}, {free:.1f} GiB free in all", fits]


def _tables(plan: Plan) -> list[Table]:
    found = [_quant_table(plan)]
    if plan.split is not None:
        found.append(stage_table(plan.split))
    if plan.outlook is not None:
        found.append(_outlook_table(plan.outlook))
    return found


def _quant_table(plan: Plan) -> Table:
    sizes = plan.rows[0].by_size
    columns = ("quant", "bits/weight", "weights", "devices", "at least", "fits here", "tokens/s ≤", "perplexity")
    sources = dict.fromkeys(quality.source for row in plan.rows for quality in row.quant.qualities)
    marks = {source: str(number).translate(_RAISED) for number, source in enumerate(sources, start=1)}
    rows = tuple((*_quant_row(row, marks), *(_or_none(each) for each in row.by_size.values())) for row in plan.rows)
    notes = [
        "devices: whole layers packed over real memory; at least: memory needed ÷ memory usable",
        "tokens/s: an upper bound for one sequence, by memory bandwidth and latency",
        f"perplexity: rise over 16 bits, {', '.join(f'{mark} {source}' for source, mark in marks.items())}",
    ]
    prefill = next((row.speed.prefill_tokens_per_second for row in plan.rows if row.speed and len(_of(row)) > 1), None)
    if prefill:
        notes.insert(2, f"over several devices a prompt is read at ≤ {prefill:,.0f} tokens/s: the link's bound")
    return Table(
        "what each quantisation needs",
        (*columns, *(f"{size} GB" for size in sizes)),
        rows,
        tuple(notes),
        plan.rows.index(plan.row),
    )


def _of(row: Row) -> Sequence[Stage]:
    return row.split.stages if row.split else ()


def _quant_row(row: Row, marks: Mapping[str, str]) -> tuple[str, ...]:
    speed = row.speed.tokens_per_second if row.speed else None
    return (
        _NAMES.get(row.quant.name, row.quant.name),
        f"{row.quant.bits:.4g}",
        f"{row.weights_bytes / GIB:.1f} GiB",
        _or_none(row.devices),
        _or_none(row.at_least),
        "yes" if row.fits else "no",
        f"{speed:.1f}" if speed else "?",
        _quality(row.quant, marks),
    )


def _quality(quant: Quant, marks: Mapping[str, str]) -> str:
    return " / ".join(f"+{100 * quality.rise:.2f} %{marks[quality.source]}" for quality in quant.qualities) or "–"


def _stage_row(number: int, stage: Stage) -> tuple[str, ...]:
    return (
        str(number),
        stage.device.name,
        f"{stage.start}–{stage.end - 1}" if stage.layers > 1 else str(stage.start),
        _size(stage.weights_bytes),
        _size(stage.kv_bytes),
        _size(stage.memory_bytes),
        f"{stage.memory_bytes / stage.device.usable_bytes:.0%}",
        _milliseconds(stage.seconds_per_token) if stage.seconds_per_token else "?",
    )


def _outlook_table(outlook: Outlook) -> Table:
    least, most = outlook.range
    now = f"where {outlook.now:,} {'does' if outlook.now == 1 else 'do'} now"
    rows = tuple((rates.name, rates.formula(outlook.now, outlook.years), rates.source) for rates in outlook.all)
    return Table(
        f"in {outlook.years:g} year{'s' * (outlook.years != 1)}: {least:,} to {most:,} GPUs of that time, {now}",
        ("preset", "GPUs = ⌈now × (model / GPU growth a year)^years⌉", "what grows"),
        rows,
        (ARTICLE_NOTE,),
        0,
    )


def _assumed(plan: Plan) -> list[str]:
    return [f"assumed: {'; '.join(plan.assumptions)}"]


def _text_of(table: Table) -> str:
    rows = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([table.heading, *(f"  {line}" for line in lines), *_wrapped(table.notes)])


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [textwrap.fill(line, LINE_CHARACTERS, subsequent_indent="  ") for line in lines]


def _html_of(table: Table) -> str:
    head = "".join(f"<th style='text-align:left'>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(_html_row(row, number == table.strong) for number, row in enumerate(table.rows))
    notes = "".join(f"<div><small>{html.escape(note)}</small></div>" for note in table.notes)
    heading = f"<div style='margin-top:1em'><b>{html.escape(table.heading)}</b></div>"
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _html_row(row: Sequence[str], strong: bool) -> str:
    weight = ";font-weight:bold" if strong else ""
    return "<tr>" + "".join(f"<td style='text-align:left{weight}'>{html.escape(cell)}</td>" for cell in row) + "</tr>"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _or_none(number: int | None) -> str:
    return "none does" if number is None else str(number)


def _params(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _size(number_bytes: int) -> str:
    return f"{number_bytes / GIB:.2f} GiB" if number_bytes >= GIB / 10 else f"{number_bytes / MIB:.1f} MiB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
