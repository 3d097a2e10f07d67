"""A run's curves as a picture."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from openfastervit.atomic import write_atomically
from openfastervit.training.tables import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#7a6200", "#555555")  # told apart by colour-blind eyes too
_INK, _QUIET = "#222222", "#dddddd"
_NOT_DRAWN = ("seconds", "images", "ece")
"""Validation columns that say how it was measured, or that have another scale than the rest."""


class _Panel(NamedTuple):
    title: str
    belongs: Callable[[str], bool]
    write: Callable[[float], str]
    from_zero: bool = False
    """The axis begins at zero: what counts is the amount."""


def _is_loss(name: str) -> bool:
    return name.split("_")[-1] == "loss"


def _is_validation(name: str) -> bool:
    return name.startswith(("val_", "ema_")) and not _is_loss(name) and name.split("_")[-1] not in _NOT_DRAWN


_UPPER = (
    _Panel("Loss", _is_loss, "{:.4g}".format),
    _Panel("Validation", _is_validation, "{:.4g}".format),
)
_LOWER = (
    _Panel("Learning rate", {"lr", "learning_rate"}.__contains__, "{:.2g}".format, from_zero=True),
    _Panel("Images a second", {"images_per_second"}.__contains__, "{:.4g}".format, from_zero=True),
    _Panel("Waiting for data", {"data_wait"}.__contains__, lambda share: f"{100 * share:.3g} %", from_zero=True),
)
# In inches. Places are fixed, so that a run's pictures can be laid over one another.
_WIDTH, _BETWEEN, _LEFT, _ABOVE, _BELOW = 14.0, 0.1, 0.8, 0.5, 0.6


class _Row(NamedTuple):
    panels: Sequence[_Panel]
    height: float
    right: float
    """Beside each panel, for the lines' names."""


_ROWS = (_Row(_UPPER, 4.4, 2.1), _Row(_LOWER, 2.9, 0.8))


def write_curves(metrics_csv: str | os.PathLike[str], png: str | os.PathLike[str]) -> bool:
    """Draw the columns of a run's ``metrics.csv`` over its epochs.

    Known are ``epoch``; ``loss`` and what ends in ``_loss``; what begins with ``val_`` or ``ema_``; ``learning_rate``
    or ``lr``; ``images_per_second``; ``data_wait``, a share from 0 to 1. Others, and empty cells, are passed over.

    Returns:
        False where matplotlib is not installed: nothing is drawn then.

    Raises:
        ValueError: If the file has no rows.
        OSError: If the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    columns, rows = read_table(Path(metrics_csv))
    if not rows:
        raise ValueError(f"{metrics_csv} holds no epoch to draw yet")
    axis = next((name for name in ("epoch", "step") if name in columns), None)
    x = [_number(row[axis]) for row in rows] if axis else [float(number) for number in range(1, len(rows) + 1)]
    lines = {name: _points(x, [_number(row[name]) for row in rows]) for name in columns if name != axis}
    lines = {name: lines[name] for name in sorted(lines, key=_rank) if lines[name]}
    shown = []
    for row in _ROWS:
        belonging = [(panel, {n: p for n, p in lines.items() if panel.belongs(n)}) for panel in row.panels]
        if panels := [(panel, found) for panel, found in belonging if found]:
            shown.append((row, panels))
    if not shown:
        raise ValueError(f"{metrics_csv} has no column to draw; it has {', '.join(columns)}")
    height = sum(row.height for row, _ in shown)
    figure = Figure(figsize=(_WIDTH, height), dpi=100, facecolor="white")
    known = [value for value in x if math.isfinite(value)]
    limits = (min(known), max(known))
    top = height
    for row, panels in shown:
        each = _WIDTH / len(panels)
        for number, (panel, found) in enumerate(panels):
            left, width = number * each + _LEFT, each - _LEFT - row.right - _BETWEEN
            bottom, tall = top - row.height + _BELOW, row.height - _ABOVE - _BELOW
            axes = figure.add_axes((left / _WIDTH, bottom / height, width / _WIDTH, tall / height))
            _draw(axes, panel, found, axis or "row", limits)
            _label(axes, panel, found, 0.22 / tall)
        top -= row.height
    write_atomically(png, lambda file: figure.savefig(file, format="png"))
    return True


def _rank(name: str) -> int:
    """Training before validation before their parts, so that each has the same colour in all runs."""
    order = ("loss", "train_loss", "val_loss")
    return order.index(name) if name in order else len(order)


def _number(text: str) -> float:
    """A cell's number; NaN for an empty one or a word."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _points(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _draw(
    axes: "Axes", panel: _Panel, lines: dict[str, list[tuple[float, float]]], unit: str, limits: tuple[float, float]
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlabel(unit, color=_INK)
    axes.grid(color=_QUIET, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(color="#999999", labelcolor=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    for number, points in enumerate(lines.values()):
        axes.plot(
            *zip(*points, strict=True),
            color=_COLOURS[number % len(_COLOURS)],
            linewidth=1.8,
            marker="o" if len(points) <= 20 else None,
            markersize=3.5,
        )
    margin = max(0.5, 0.02 * (limits[1] - limits[0]))
    axes.set_xlim(limits[0] - margin, limits[1] + margin)
    if panel.from_zero:
        largest = max(value for points in lines.values() for _, value in points)
        axes.set_ylim(0, 1.1 * largest or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: panel.write(value)))
    for name, points in lines.items():
        if _counts_up(name):
            axes.plot(*_best(points), marker="o", markersize=8, markerfacecolor="none", markeredgecolor=_INK)


def _counts_up(name: str) -> bool:
    """Whether more is better for certain: then its best epoch is marked."""
    return _is_validation(name) and "top1" in name


def _best(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return max(points, key=lambda point: point[1])


def _label(axes: "Axes", panel: _Panel, lines: dict[str, list[tuple[float, float]]], gap: float) -> None:
    """Names and last values to the right of the lines' ends, pushed apart where they would overlap."""
    texts = []
    for name, points in lines.items():
        text = panel.write(points[-1][1])
        if panel in _UPPER:
            text = f"{_in_words(name)} {text}"
        if _counts_up(name) and _best(points) != points[-1]:
            text += f", best {panel.write(_best(points)[1])}"
        texts.append(text)
    axes.get_ylim()  # the scale follows from the lines only when it is asked for
    place = axes.transData + axes.transAxes.inverted()
    heights = [float(place.transform(points[-1])[1]) for points in lines.values()]
    for number, (text, height) in enumerate(zip(texts, _apart(heights, gap), strict=True)):
        axes.annotate(
            text,
            (1.015, height),
            xycoords="axes fraction",
            va="center",
            color=_COLOURS[number % len(_COLOURS)],
            fontsize=10,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights from 0 to 1 moved as little as it takes for ``gap`` between neighbours, within 0 and 1 where they fit."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [min(max(heights[index], 0.0), 1.0) for index in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], top)
        top = placed[i] - gap
    out = [0.0] * len(heights)
    for index, height in zip(order, placed, strict=True):
        out[index] = height
    return out


_WORDS = {"train": "training", "val": "validation", "ema": "EMA", "top1": "top-1", "top5": "top-5", "mesa": "MESA"}


def _in_words(name: str) -> str:
    """A column's name as a label, without what its panel's title says."""
    if _is_loss(name):
        parts = name.split("_")[:-1] or ["training"]
    else:
        parts = [part for part in name.split("_") if part != "val"]
    return " ".join(_WORDS.get(part, part) for part in parts)
