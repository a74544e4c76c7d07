"""Parallel coordinates: a line per complete trial through its parameters to its number, dark where that is good."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from matplotlib.ticker import LogLocator, MaxNLocator

from kalavai_nb.plot.parameters import Axis, Numbers, short
from kalavai_nb.plot.plot import Picture, spread

MAX_LINES = 500
_STRIP_WIDTH = 0.012
_HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}


def draw_coordinates(ax: Axes, picture: Picture, colors: Colormap, best_color: str) -> None:
    """All of it into ``ax``; the last axis is the metric, with the colours of its numbers beside it."""
    axes = [*picture.parameters, picture.metric]
    chosen = spread(picture.order, MAX_LINES)[::-1]
    heights = np.array([*map(_heights, picture.parameters), _metric_heights(picture, picture.metric.numbers)])
    lines = [np.column_stack([np.arange(len(axes)), heights[:, trial]]) for trial in chosen]
    alpha = 0.85 if len(lines) <= 60 else 0.5 if len(lines) <= 200 else 0.3
    many = len(lines) > 200
    collection = LineCollection(lines, colors=colors(picture.shades[chosen]), linewidths=0.9, alpha=alpha)
    collection.set_rasterized(many)
    ax.add_collection(collection)
    ax.plot(*lines[-1].T, color=best_color, linewidth=2.2, zorder=4)
    _draw_strip(ax, picture, colors, len(axes))
    for position, axis in enumerate(axes):
        ax.axvline(position, color="#8a929a", linewidth=0.8, zorder=3)
        is_last = position == len(axes) - 1
        start, side = (position + 2 * _STRIP_WIDTH * len(axes), "left") if is_last else (position, "right")
        for height, text in _marks(picture, axis, is_last):
            ax.annotate(text, (start, height), (0 if is_last else -4, 0), textcoords="offset points", fontsize=7.5,
                        ha=side, va="center", zorder=5, bbox=_HALO)  # fmt: skip
    pad = 0.075 * len(axes)
    ax.set(xlim=(-pad, len(axes) - 1 + pad), ylim=(-0.03, 1.03))
    length = 24 if len(axes) <= 4 else 110 // len(axes)
    ax.set_xticks(range(len(axes)), [short(axis.name, length) for axis in axes])
    ax.tick_params(length=0, labelsize=9, labelcolor="#333333")
    ax.yaxis.set_visible(False)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    some = f": the best, and some of {len(picture.order):,}" if len(picture.order) > len(chosen) else ""
    ax.set_title(f"one line per complete trial{some}", loc="left")


def _draw_strip(ax: Axes, picture: Picture, colors: Colormap, count: int) -> None:
    """Which colour stands for which number: colours go by rank, so that close ones can be told apart."""
    known = _metric_heights(picture, picture.metric.numbers[picture.order])
    edges = np.linspace(float(known[0]), float(known[-1]), 129)
    sign = 1 if picture.mode == "min" else -1
    shades = np.interp(sign * (edges[:-1] + edges[1:]) / 2, sign * known, picture.shades[picture.order])
    left = count - 1
    if edges[0] != edges[-1]:
        ax.pcolormesh([left, left + _STRIP_WIDTH * count], edges, shades[:, None], cmap=colors, vmin=0, vmax=1,
                      zorder=3, rasterized=True)  # fmt: skip


def _marks(picture: Picture, axis: Axis, is_metric: bool) -> list[tuple[float, str]]:
    """[(height, text)] of the ticks of a vertical axis."""
    if axis.categories:
        heights = (np.arange(len(axis.categories)) + 0.5) / len(axis.categories)
        return list(zip(heights.tolist(), axis.labels(12), strict=True))
    low, high = _complete_ends(picture) if is_metric else _ends(axis)
    values = axis.ticks()
    if not values:
        locator = LogLocator(numticks=5) if axis.log else MaxNLocator(4)
        inner = np.asarray(locator.tick_values(low, high))
        heights = axis.between(inner, low, high)
        values = [low, *inner[(heights > 0.12) & (heights < 0.88)], high]
    return [(float(h), _number(value)) for h, value in zip(axis.between(values, low, high), values, strict=True)]


def _number(value: float) -> str:
    return f"{value:.4g}" if value == round(value) and abs(value) < 10_000 else f"{value:.3g}"


def _heights(axis: Axis) -> Numbers:
    """Where the values of a parameter lie, from 0 to 1 [trials]."""
    if axis.categories:
        return (axis.jittered() + 0.5) / len(axis.categories)
    return axis.between(axis.numbers, *_ends(axis))


def _metric_heights(picture: Picture, numbers: Numbers) -> Numbers:
    return np.clip(picture.metric.between(numbers, *_complete_ends(picture)), 0, 1)


def _complete_ends(picture: Picture) -> tuple[float, float]:
    known = np.clip(picture.metric.numbers[picture.order], *picture.limits)
    return float(known.min()), float(known.max())


def _ends(axis: Axis) -> tuple[float, float]:
    known = axis.numbers[np.isfinite(axis.numbers)]
    return float(known.min()), float(known.max())
