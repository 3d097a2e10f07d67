"""Pictures of an evaluation, as PNG; needs matplotlib."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from openfastervit.tasks.metrics import ConfidenceBin

_DPI = 100
_NAMED = 40
"""Most classes whose names find room on the axes."""
_COUNTED = 20
"""Most classes whose cells have room for a number."""
_WORST = 40
"""Confusions that are listed beside a map without names."""
_LETTERS = 32
"""Longest name in a picture."""


def confusion_png(confusion: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """A confusion matrix ``(K, K)``: rows are the true classes, coloured by their images' share.

    Names stand on the axes where there is room for them. Otherwise every class has at least one pixel, and the most
    frequent confusions are listed beside the map.
    """
    images = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_array(confusion / np.maximum(images, 1), mask=np.broadcast_to(images == 0, confusion.shape))
    names = [_shown(name) for name in classes]
    with warnings.catch_warnings():
        # Names may be in scripts that matplotlib's font lacks: they are boxes here, and whole in the tables.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _named(confusion, shares, names) if len(classes) <= _NAMED else _unnamed(confusion, shares, names)


def _named(confusion: NDArray[np.int64], shares: NDArray[np.float64], names: Sequence[str]) -> bytes:
    count = len(names)
    side = max(3.0, count * (0.45 if count <= _COUNTED else 0.25))
    labels = 0.07 * max(map(len, names))
    figure = Figure(figsize=(side + labels + 1.8, side + labels + 0.9), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _map(figure, axes, axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1)), shares)
    axes.set_xticks(range(count), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=8, parse_math=False)
    axes.set_title("Confusion matrix", fontsize=11)
    if count <= _COUNTED:
        axes.set_title("Confusion matrix: images", fontsize=11)
        for (row, column), number in np.ndenumerate(confusion):
            if number:
                text = f"{number}" if number < 10_000 else f"{number / 1000:.0f}k"
                colour = "white" if shares[row, column] > 0.15 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def _unnamed(confusion: NDArray[np.int64], shares: NDArray[np.float64], names: Sequence[str]) -> bytes:
    count, side = len(names), 10.0
    # Whole pixels a class, so that none is lost and none is wider than its neighbour.
    pixels = count * max(1, round(side * _DPI / count))
    figure = Figure(figsize=(side, side), dpi=pixels / side)
    head = "Most frequent confusions: images (percent of the true class)"
    worst = figure.text(
        0,
        0,
        "\n".join([head, "", *(_worst(confusion, shares, names) or ["none"])]),
        va="top",
        fontsize=9,
        linespacing=1.7,
        parse_math=False,
    )
    left, below, between, above, right = 0.8, 0.7, 1.5, 0.5, 0.3
    right += worst.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
    width, height = left + side + between + right, below + side + above
    figure.set_size_inches(width, height)
    worst.set_position(((left + side + between) / width, 1 - above / height))
    axes = figure.add_axes((left / width, below / height, side / width, side / height))
    bar = figure.add_axes(((left + side + 0.2) / width, below / height, 0.2 / width, side / height))
    axes.spines[:].set_position(("outward", 2))  # a class may be one pixel, which the frame would cover
    _map(figure, axes, bar, shares)
    axes.set_title(f"Confusion matrix of {count} classes, in their order", fontsize=11)
    return _png(figure)


def _map(figure: Figure, axes: Axes, bar: Axes, shares: NDArray[np.float64]) -> None:
    """Draw the shares, and their colours into ``bar``."""
    # White is for none alone, and the root spreads out what is rare: off the diagonal most shares are a few percent.
    blues = colormaps["Blues"](np.linspace(0.25, 1, 255))
    colours = ListedColormap([(1.0, 1.0, 1.0, 1.0), *map(tuple, blues)])
    axes.set_facecolor("lightgray")  # classes without images
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    scale = figure.colorbar(image, cax=bar)
    scale.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], labels=["0", "1", "5", "10", "25", "50", "100"])
    scale.set_label("percent of the true class's images")


def _worst(confusion: NDArray[np.int64], shares: NDArray[np.float64], names: Sequence[str]) -> list[str]:
    """The most frequent confusions, a line each."""
    wrong = confusion * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_WORST]
    return [
        f"{wrong[row, column]} ({100 * shares[row, column]:.0f} %)  {names[row]} \N{RIGHTWARDS ARROW} {names[column]}"
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def reliability_png(bins: Sequence[ConfidenceBin], error: float) -> bytes:
    """How often predictions of each confidence are right, and how many there are; ``error`` is shown in the title."""
    figure = Figure(figsize=(5.5, 6), dpi=_DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [row for row in bins if row.images]
    lower, width = [row.lower for row in filled], 1 / len(bins)
    top.bar(lower, [row.accuracy for row in filled], width, align="edge", edgecolor="white", label="measured")
    top.plot([0, 1], [0, 1], "--", color="black", label="perfectly calibrated")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share predicted rightly")
    top.set_title(f"Reliability: expected calibration error {error:.4f}", fontsize=11)
    bottom.bar(lower, [row.images for row in filled], width, align="edge", edgecolor="white", color="gray")
    bottom.set(xlabel="probability of the predicted class", ylabel="images")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return _png(figure)


def _shown(name: str) -> str:
    """A class's name, on one line, of text alone and not too long."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
