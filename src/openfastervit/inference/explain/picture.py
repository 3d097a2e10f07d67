"""An explanation as one picture; needs matplotlib.

Amber is where attention or evidence is more than if it were spread evenly, dark where it is less: the same in all
panels, and in the demo's report.
"""

import importlib.util
import io
import itertools
import textwrap
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openfastervit.inference.explain.carriers import CarrierAttention
from openfastervit.inference.explain.explanation import Explanation
from openfastervit.inference.explain.windows import WindowAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = NDArray[np.floating[Any]]

_AMBER = (1.0, 176 / 255, 32 / 255)
_OWN = "#60c8ff"
_INK, _SOFT, _PAPER, _BAR = "#1d2430", "#5b6472", "#ffffff", "#3046b4"
_DIM = 0.35
"""How much of the image's light is left where there is no attention."""
_SURE = 2.0
"""Full amber is for this multiple of even attention at least: less is not made to look like much."""
_DPI = 150
_COLUMNS = 4
_PANEL = 3.0
"""The longer side of a panel, in inches, as all that follow."""
_NARROW = 2.4
"""A column at least, so that a narrow image has room for its caption."""
_MARGIN, _GAP, _BETWEEN, _TOP, _BOTTOM = 0.25, 0.2, 0.72, 0.72, 0.68
_NOTE = 0.4
"""A row of words."""
_LETTERS = 30
"""Longest name in a picture."""
_NAMED = 5
"""Classes shown with their probabilities."""


def require_matplotlib() -> None:
    """Raise ``ValueError`` unless matplotlib is installed, saying how to get it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the picture needs matplotlib; install with: pip install 'openfastervit[explain]'")


def draw(explanation: Explanation, title: str = "") -> bytes:
    """The picture of an explanation, as a PNG file.

    Above: the image, the likeliest classes, Grad-CAM of the class that was looked for, and the attention that each
    cell receives inside its window, in the last block that has carriers (or else the first stage of windows' last).
    Below: what up to four carriers look at in that block, each with its own window framed. What the network has not is
    said in its place.

    Args:
        explanation: Of one image.
        title: A line above, such as the image's name.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    require_matplotlib()
    block = explanation.carriers[-1] if explanation.carriers else None
    height, width = explanation.pixels.shape[1:]
    sheet = _Sheet(height, width, below=None if block is not None else _NOTE)
    shown = _photograph(explanation.pixels)
    _panel(sheet.panel(0, 0), shown, "What the network sees", f"{height} \u00d7 {width} pixels")
    _chances(sheet.panel(0, 1, 1), explanation)
    _cam(sheet.panel(0, 2), explanation, shown)
    _windows(sheet.panel(0, 3), explanation, shown, block)
    if block is None:
        _note(sheet.panel(1, 0, _COLUMNS), "Carrier attention", explanation.no_carriers)
    else:
        _carriers(sheet, block, shown)
    _legend(sheet, block)
    if title:
        sheet.write(title)
    return sheet.png()


class _Sheet:
    """A figure with two rows of panels of an image's shape; lengths are in inches.

    Args:
        height: Of the image.
        width: Of the image.
        below: Height of the second row, where that is no image's.
    """

    def __init__(self, height: int, width: int, below: float | None = None) -> None:
        from matplotlib.figure import Figure

        scale = _PANEL / max(height, width)
        self._wide, self._high = scale * width, scale * height
        self._column = max(self._wide, _NARROW)
        self._below = self._high if below is None else below
        self.width = 2 * _MARGIN + _COLUMNS * self._column + (_COLUMNS - 1) * _GAP
        self.height = _TOP + self._high + _BETWEEN + self._below + _BOTTOM
        self.figure = Figure(figsize=(self.width, self.height), dpi=_DPI, facecolor=_PAPER)

    def panel(self, row: int, column: int, columns: int = 0) -> "Axes":
        """Room for an image, or for words over so many columns."""
        left = _MARGIN + column * (self._column + _GAP)
        wide = columns * (self._column + _GAP) - _GAP if columns else self._wide
        high, low = (self._high, self.height - _TOP - self._high) if row == 0 else (self._below, _BOTTOM)
        return self.figure.add_axes((left / self.width, low / self.height, wide / self.width, high / self.height))

    def write(self, title: str) -> None:
        """The line above all."""
        x, y = _MARGIN / self.width, 1 - 0.16 / self.height
        style: dict[str, Any] = {"va": "top", "fontsize": 11, "weight": "bold", "color": _INK}
        self.figure.text(x, y, _shown(title, 80), parse_math=False, **style)

    def png(self) -> bytes:
        """The file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        content = io.BytesIO()
        with warnings.catch_warnings():
            # Names may be in scripts that matplotlib's font lacks: they are boxes here, and whole elsewhere.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            FigureCanvasAgg(self.figure).print_png(content)
        return content.getvalue()


def evenly(maps: Tensor) -> Tensor:
    """``(..., H, W)``: a map as a multiple of its mean, 1 where it is even; one of zeros stays."""
    return maps / maps.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-30)


def overlay(image: Pixels, relative: Pixels, most: float) -> Pixels:
    """An image in grey, amber where a map is above 1, and darkened where it is below.

    Args:
        image: ``(H, W, 3)``, from 0 to 1.
        relative: ``(H, W)``: multiples of even attention.
        most: The multiple that is shown in full amber.
    """
    grey = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    amber = np.array(_AMBER, dtype=np.float32)
    light = _DIM + (1 - _DIM) * relative.clip(0, 1)[..., None]
    heat = 0.85 * (((relative - 1) / max(most - 1, 1e-6)).clip(0, 1) ** 0.7)[..., None]
    # Amber keeps the image's light, so that what lies below it can be made out.
    shown: Pixels = light * ((1 - heat) * grey + heat * amber * (0.7 + 0.3 * grey))
    return shown


def _photograph(pixels: Tensor) -> Pixels:
    """``(C, H, W)`` in uint8 to ``(H, W, 3)`` in 0 to 1."""
    image: Pixels = pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy() / np.float32(255)
    return image


def _panel(axes: "Axes", image: Pixels, heading: str, below: str = "", colour: str = _SOFT) -> None:
    axes.imshow(image.clip(0, 1), interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(heading, fontsize=9, loc="left", color=_INK, weight="bold", pad=5, parse_math=False)
    axes.set_xlabel(below, fontsize=8, loc="left", color=colour, labelpad=4, parse_math=False)


def _heated(axes: "Axes", shown: Pixels, relative: Tensor, heading: str, below: str, most: float | None = None) -> None:
    """A panel with a map ``(H, W)`` of pixels over the image."""
    values: Pixels = relative.cpu().numpy()
    most = max(_SURE, float(values.max())) if most is None else most
    _panel(axes, overlay(shown, values, most), heading, below)


def _chances(axes: "Axes", explanation: Explanation) -> None:
    """The likeliest classes as bars, and the class that was looked for."""
    scores = explanation.cam.probabilities[0]
    best = scores.topk(min(_NAMED, len(scores))).indices.tolist()
    if explanation.target not in best:
        best[-1] = explanation.target
    axes.set_title("What it takes it for", fontsize=9, loc="left", color=_INK, weight="bold", pad=5)
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(_NAMED, 0))
    for place, index in enumerate(best):
        score, chosen = float(scores[index]), index == explanation.target
        axes.barh(place + 0.68, 1, 0.22, color="#e9ebf0")
        axes.barh(place + 0.68, score, 0.22, color=_AMBER if chosen else _BAR)
        style: dict[str, Any] = {"fontsize": 8, "color": _INK, "va": "center", "weight": "bold" if chosen else "normal"}
        axes.text(0, place + 0.32, _shown(explanation.classes[index]), parse_math=False, **style)
        axes.text(1, place + 0.32, f"{score:.1%}".replace("%", "\u00a0%"), ha="right", **style)


def _cam(axes: "Axes", explanation: Explanation, shown: Pixels) -> None:
    cam = explanation.cam
    name, score = explanation.classes[explanation.target], float(cam.probabilities[0, explanation.target])
    rows, columns = cam.maps.shape[1:]
    stage = f"stage {cam.name.rpartition('.')[2]}"
    below = f"Grad-CAM, {stage}: {rows} \u00d7 {columns} cells"
    if not bool(cam.maps[0].any()):
        below = f"Grad-CAM, {stage}: nothing speaks for it"
    heading = f"{_shown(name, 22)}: {score:.1%}".replace("%", "\u00a0%")
    _heated(axes, shown, evenly(cam.over_image("bilinear")[0]), heading, below)


def _windows(axes: "Axes", explanation: Explanation, shown: Pixels, carriers: CarrierAttention | None) -> None:
    if not explanation.windows:
        _note(axes, "Window attention", explanation.no_windows)
        return
    block = _block_of(explanation.windows, None if carriers is None else carriers.name)
    relative = block.over_image(block.relative(), "bilinear")[0]
    given = float(block.to_carriers().mean())
    below = _place(block.name)
    if block.carriers:
        below = f"{below}; to carriers: {given:.1%}".replace("%", "\u00a0%")
    _heated(axes, shown, relative, "Attention inside windows", below)
    _window_grid(axes, block.window, block.stride, block.image_size)


def _block_of(blocks: tuple[WindowAttention, ...], name: str | None) -> WindowAttention:
    """The block of that name; without one the last of the first stage of windows."""
    if name is None:
        stage = blocks[0].name.rpartition(".")[0]
        name = [block.name for block in blocks if block.name.rpartition(".")[0] == stage][-1]
    return next(block for block in blocks if block.name == name)


def _carriers(sheet: _Sheet, block: CarrierAttention, shown: Pixels) -> None:
    """Some carriers, each on a panel."""
    from matplotlib.patches import Rectangle

    chosen = list(spread(block))
    relative = evenly(block.over_image("bilinear")[0])
    most = max(_SURE, *(float(relative[place].max()) for place in chosen))
    elsewhere = block.elsewhere()[0]
    height, width = (side * block.stride for side in block.window)
    for panel, (row, column) in enumerate(chosen):
        share = f"{float(elsewhere[row, column]):.0%}".replace("%", "\u00a0%")
        axes = sheet.panel(1, panel)
        heading = f"Carrier in row {row + 1}, column {column + 1}"
        _heated(axes, shown, relative[row, column], heading, f"{share} from other windows", most)
        _window_grid(axes, block.window, block.stride, block.image_size)
        top, left = row // block.carrier_size * height, column // block.carrier_size * width
        bottom, right = min(top + height, block.image_size[0]), min(left + width, block.image_size[1])
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=_OWN, linewidth=2)
        frame.set_clip_on(False)
        axes.add_patch(frame)


def spread(block: CarrierAttention) -> Iterator[tuple[int, int]]:
    """Rows and columns of up to four carriers, of different windows, spread evenly over the grid."""
    rows, columns = block.maps.shape[1:3]
    down = min(rows // block.carrier_size, 2 if columns > block.carrier_size else _COLUMNS)
    across = min(columns // block.carrier_size, _COLUMNS // down)
    yield from itertools.product(_spread(rows, down), _spread(columns, across))


def _spread(length: int, count: int) -> list[int]:
    """So many places of an axis, the same from either end."""
    near = [(2 * place + 1) * length // (2 * count) for place in range((count + 1) // 2)]
    return [*near, *(length - 1 - place for place in reversed(near[: count // 2]))]


def _window_grid(axes: "Axes", window: tuple[int, int], stride: int, size: tuple[int, int]) -> None:
    """Thin lines between windows."""
    style: dict[str, Any] = {"color": "white", "linewidth": 0.7, "alpha": 0.75}
    for edge in range(window[0] * stride, size[0], window[0] * stride):
        axes.axhline(edge - 0.5, **style)
    for edge in range(window[1] * stride, size[1], window[1] * stride):
        axes.axvline(edge - 0.5, **style)


def _note(axes: "Axes", heading: str, text: str) -> None:
    """Words where a picture would be."""
    axes.axis("off")
    axes.set_title(heading, fontsize=9, loc="left", color=_INK, weight="bold", pad=5)
    letters = round(axes.get_window_extent().width / axes.figure.dpi * 13)
    text = f"{text[:1].upper()}{text[1:]}."
    axes.text(
        0, 1, textwrap.fill(text, letters), transform=axes.transAxes, va="top", fontsize=9, color=_SOFT, linespacing=1.5
    )


def _legend(sheet: _Sheet, block: CarrierAttention | None) -> None:
    from matplotlib.patches import Patch

    parts = [
        Patch(facecolor="#3a3a3a", label="less than if spread evenly"),
        Patch(facecolor=_AMBER, label="more"),
    ]
    if block is not None:
        parts.append(Patch(facecolor="none", edgecolor=_OWN, linewidth=2, label="the carrier's own window"))
        told = f"{block.maps.shape[1]} \u00d7 {block.maps.shape[2]} carriers, {_place(block.name)}"
        where = 1 - _MARGIN / sheet.width, 0.09 / sheet.height
        sheet.figure.text(*where, told, ha="right", va="bottom", fontsize=8, color=_SOFT)
    sheet.figure.legend(
        handles=parts,
        loc="lower left",
        bbox_to_anchor=((_MARGIN - 0.06) / sheet.width, 0.05 / sheet.height),
        borderpad=0,
        ncols=len(parts),
        frameon=False,
        fontsize=8,
        labelcolor=_SOFT,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.6,
    )


def _place(name: str) -> str:
    """``stages.2.attention.blocks.1`` as people say it."""
    _, stage, *_, block = name.split(".")
    return f"stage {stage}, block {block}"


def _shown(name: str, letters: int = _LETTERS) -> str:
    """A name, on one line, of text alone and not too long."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= letters else f"{name[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"
