"""Rows as a table: text for terminals and saved notebooks, plain HTML that follows the front end's own style."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

Rows = Iterable[Sequence[str]]


def grid_text(columns: Sequence[str], rows: Rows) -> str:
    """The table in aligned lines, its heads first."""
    lines = [columns, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def grid_html(columns: Sequence[str], rows: Rows) -> str:
    """The same as an HTML table."""
    head = "".join(f"<th style='text-align:left'>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
