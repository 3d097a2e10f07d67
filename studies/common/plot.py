"""What the plots of all studies share: no display is needed, and a plot is replaced whole."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openfastervit.atomic import write_atomically
from studies.common.spread import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#e8590c", "#3b82d0", "#2f9e44", "#9c36b5", "#6b7280", "#0c8599")


def new_figure(columns: int = 1, *, width: float = 8, height: float = 5) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def save(figure: Figure, path: Path) -> None:
    """As PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def bars(values: Sequence[float]) -> tuple[float, tuple[list[float], list[float]]]:
    """Mean of some seeds, and how far below and above it they go: what ``Axes.errorbar`` takes."""
    found = spread(values)
    return found.mean, ([found.mean - found.least], [found.most - found.mean])


def draw_comparison(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A line for each row of a comparison: the seeds as points, their mean as a bar; the verdict beside it."""
    rows = [row for row in rows if row.get("top1_each_seed")]
    figure, (axes,) = new_figure(height=1.2 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        values = [float(value) for value in row["top1_each_seed"].split()]
        axes.plot(values, [place] * len(values), "o", color=COLOURS[1], markersize=5, alpha=0.7)
        axes.plot([bars(values)[0]] * 2, [place - 0.3, place + 0.3], color=COLOURS[0], linewidth=2)
        if row["compared_with"]:
            text = f"  {row.get('verdict', '')} (to {row['compared_with']})"
            axes.annotate(text, (max(values), place), va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("top-1, %: each seed, and their mean")
    if rows:
        axes.set_title(source(rows[0]), fontsize=8)
    save(figure, path)


def source(row: Mapping[str, Any]) -> str:
    """Where the figures of a row are from, on one line."""
    parts = [f"scale {row['scale']}", f"epochs: {row.get('epochs', '?')}", row.get("processor", "")]
    parts += [f"{row.get('cores', '?')} cores", f"GPUs: {row.get('gpus', '?')}", f"torch {row.get('torch', '?')}"]
    return ", ".join(map(str, parts))
