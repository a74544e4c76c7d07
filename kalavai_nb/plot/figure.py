"""Draws what `sweep_plot` found worth seeing of a sweep: on white, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from kalavai_nb.plot.coordinates import draw_coordinates
from kalavai_nb.plot.parameters import Axis, is_spread, short
from kalavai_nb.plot.plot import Picture

WIDTH_INCHES = 10.0
_HEAD_INCHES = 0.68
_LARGE_BYTES = 1_000_000
_BLUE, _BEST, _LIGHT = "#0072b2", "#d55e00", "#b9c0c7"
_INK, _TICK, _GRID = "#333333", "#5a6168", "#e4e7ea"
# all that a person's own style could set otherwise and that would not go with the rest
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.weight": "normal",
    "text.color": _INK,
    "text.usetex": False,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.edgecolor": "#8a929a",
    "axes.facecolor": "white",
    "axes.linewidth": 0.8,
    "axes.spines.left": True,
    "axes.spines.bottom": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "both",
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "path.sketch": None,
    "figure.facecolor": "white",
    "savefig.facecolor": "auto",
    "savefig.transparent": False,
    "savefig.bbox": None,
}


class SweepFigure(Figure):
    """A figure that shows itself as the value of a cell, also where pyplot was never imported."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """At twice the resolution, with the size in which to show it."""
        file = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            self.savefig(file, format="png", dpi=2 * self.dpi)
        if file.tell() > _LARGE_BYTES:
            # 256 colours take a quarter of the room in a notebook, and are enough for thousands of lines
            image, file = Image.open(file), io.BytesIO()
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, format="png")
        width, height = self.get_size_inches() * self.dpi
        return file.getvalue(), {"width": round(width), "height": round(height)}


def draw(picture: Picture) -> Figure:
    """All panels in one figure: parameters above, coordinates and curves below, side by side where there is room."""
    count = len(picture.parameters)
    columns = count if count <= 4 else -(-count // 2)
    rows = -(-count // columns)
    panels = [_draw_coordinates] * (count > 1) + [_draw_curves] * bool(picture.curves)
    is_wide = len(panels) == 2 and count > 4
    heights = [_HEAD_INCHES, 2.1 * rows + 0.3 * (rows == 1), *([2.9] * (len(panels) if is_wide else bool(panels)))]
    with matplotlib.rc_context(_STYLE):
        figure = SweepFigure(figsize=(WIDTH_INCHES, sum(heights)), dpi=100, layout="constrained")
        head, above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_head(picture, head)
        _draw_parameters(picture, above, rows, columns)
        if len(panels) == 2 and not is_wide:
            below = list(below[0].subfigures(1, 2, width_ratios=[1.25, 1]))
        for panel, band in zip(panels, below, strict=True):
            panel(picture, _plain(band.subplots()))
    return figure


def _plain(ax: Axes) -> Axes:
    """Says what ticks and grid look like: they are made when the figure is drawn, perhaps in a person's own style."""
    ax.tick_params(which="both", color=_TICK, labelcolor=_TICK, labelsize=8)
    ax.tick_params(grid_color=_GRID, grid_linewidth=0.7, grid_linestyle="-", grid_alpha=1.0)
    return ax


def _draw_head(picture: Picture, band: SubFigure) -> None:
    """What it is, what was found, and what the marks mean."""
    line = 0.1 / _HEAD_INCHES
    band.text(0.01, 1 - line, picture.title, fontsize=11, fontweight="bold", va="top")
    band.text(0.01, 1 - 3.2 * line, "\n".join(picture.notes), va="top", linespacing=1.4)
    marks = [_mark("o", _BLUE, "complete"), _mark("*", _BEST, "best")]
    if picture.is_pruned.any() or any(curve.is_pruned for curve in picture.curves):
        marks.insert(1, _mark("o", _LIGHT, "pruned"))
    band.legend(handles=marks, loc="upper right", ncols=3, frameon=False, handletextpad=0.1, columnspacing=1.0)


def _mark(marker: str, color: str, label: str) -> Line2D:
    size, alpha = (10, 1.0) if marker == "*" else (5, 0.75)
    return Line2D([], [], marker=marker, color=color, alpha=alpha, label=label, linestyle="", markersize=size)


def _draw_parameters(picture: Picture, band: SubFigure, rows: int, columns: int) -> None:
    """The metric against each parameter."""
    grid = band.subplots(rows, columns, sharey=True, squeeze=False)
    for number, ax in enumerate(grid.flat):
        if number >= len(picture.parameters):
            ax.remove()
            continue
        axis = picture.parameters[number]
        _draw_trials(_plain(ax), axis, picture)
        _scale(ax, axis, 100 // columns)
        ax.set_xlabel(short(axis.name, 32))
        if number % columns == 0:
            ax.set_ylabel(short(picture.metric.name, 32))
        else:
            ax.tick_params(axis="y", left=False)
    first: Axes = grid[0, 0]
    low, high = picture.limits
    if picture.metric.log:
        first.set_yscale("log")
    elif outside := ((picture.metric.numbers < low) | (picture.metric.numbers > high)).sum():
        margin = 0.06 * (high - low)
        first.set_ylim(low - margin, high + margin)
        where = "▲ {} far above" if picture.mode == "min" else "▼ {} far below"
        first.set_title(where.format(outside), loc="left", fontsize=8)


def _draw_trials(ax: Axes, axis: Axis, picture: Picture) -> None:
    positions, numbers = axis.jittered(), np.clip(picture.metric.numbers, *picture.limits)
    is_outside = numbers != picture.metric.numbers
    count = len(numbers)
    size, alpha = (24, 0.75) if count <= 500 else (10, 0.4) if count <= 3000 else (5, 0.15)
    for group, color in ((picture.is_pruned, _LIGHT), (~picture.is_pruned, _BLUE)):
        for outside, marker in ((False, "o"), (True, "^" if picture.mode == "min" else "v")):
            chosen = group & (is_outside == outside)
            ax.scatter(positions[chosen], numbers[chosen], size, color, marker=marker, alpha=alpha, linewidths=0,
                       zorder=2, rasterized=count > 500)  # fmt: skip
    best = picture.order[0]
    ax.scatter(positions[best], numbers[best], 130, _BEST, marker="*", edgecolors="white", linewidths=0.8, zorder=5,
               clip_on=False)  # fmt: skip


def _scale(ax: Axes, axis: Axis, room: int) -> None:
    """The x axis of a parameter: its categories, the values of a small grid, or a few round numbers.

    ``room`` is how many characters fit beside each other.
    """
    ticks = axis.ticks()
    if axis.log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
    if axis.categories:
        labels = axis.labels(16)
        is_tight = sum(len(label) + 2 for label in labels) > room
        ax.set_xticks(ticks, labels, rotation=30 if is_tight else 0, ha="right" if is_tight else "center")
        ax.set_xlim(-0.6, len(labels) - 0.4)
        ax.grid(False, axis="x")
    elif ticks:
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.margins(x=0.12)
    elif not axis.log:
        known = axis.numbers[np.isfinite(axis.numbers)]
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=bool((known == known.round()).all())))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _draw_coordinates(picture: Picture, ax: Axes) -> None:
    draw_coordinates(ax, picture, _colors(), _BEST)


def _draw_curves(picture: Picture, ax: Axes) -> None:
    """What trials reported on their way; a dot is where a trial ended that is not complete."""
    complete = [curve for curve in picture.curves if not np.isnan(curve.shade)][::-1]
    for curve in picture.curves[len(complete) :]:
        ax.plot(curve.steps, curve.numbers, color=_LIGHT, linewidth=0.8, zorder=2)
        ax.plot(curve.steps[-1:], curve.numbers[-1:], ".", color="#8a929a", markersize=3, zorder=2)
    for curve in complete:
        is_best = curve.shade == 0
        color = _BEST if is_best else _colors()(curve.shade)
        alpha = 1.0 if is_best else 0.9 if len(complete) < 50 else 0.5
        ax.plot(curve.steps, curve.numbers, color=color, linewidth=2.2 if is_best else 0.9, alpha=alpha, zorder=3)
    numbers = np.concatenate([curve.numbers for curve in picture.curves])
    numbers = numbers[np.isfinite(numbers)]
    if is_spread(numbers):
        ax.set_yscale("log")
    elif len(numbers):
        # a few that are far out get no room
        low, high = np.quantile(numbers, [0.01, 0.99])
        span = (high - low) or 1.0
        ax.set_ylim(max(numbers.min(), low - span) - 0.05 * span, min(numbers.max(), high + span) + 0.05 * span)
    ax.set(xlabel="step", ylabel=short(picture.curves_of, 32))
    ax.margins(x=0.02)
    some = f": the best, and some of {picture.reporting:,}" if picture.reporting > len(picture.curves) else ""
    ax.set_title(f"what trials reported{some}", loc="left")


def _colors() -> Colormap:
    """From good to bad. Without the light end, which cannot be seen on white."""
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)))
