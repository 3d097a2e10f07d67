"""A sheet of images as a network gets them: a look at it shows what the augmentation does."""

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from openfastervit.atomic import write_atomically

_SMALLEST, _LARGEST = 160, 256
"""Sides of a tile, in pixels."""
_MARGIN, _FONT_SIZE, _LINES = 10, 13, 2


def write_contact_sheet(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    captions: Sequence[str],
    png: str | os.PathLike[str],
) -> None:
    """Draw images as a network gets them, in rows, each with its caption.

    Args:
        images: (N, C, H, W), normalised; one channel or three, of any float type, on any device.
        mean: Of each channel, as it was subtracted.
        std: Of each channel, as it was divided by.
        captions: One an image; longer ones than two lines are cut.
        png: The file.

    Raises:
        ValueError: If the sizes do not go together.
        OSError: If the picture cannot be written.
    """
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {list(images.shape)} cannot be drawn; give (N, 1 or 3, H, W)")
    N, C, H, W = images.shape
    if not len(mean) == len(std) == C:
        raise ValueError(f"{C} channels need {C} means and deviations; got {len(mean)} and {len(std)}")
    if len(captions) != N:
        raise ValueError(f"{N} images need {N} captions; got {len(captions)}")
    plain = images.detach().float().cpu()
    plain = plain * plain.new_tensor(std).view(1, C, 1, 1) + plain.new_tensor(mean).view(1, C, 1, 1)
    pixels = (plain.nan_to_num() * 255).round().clamp(0, 255).byte().expand(N, 3, H, W).permute(0, 2, 3, 1).numpy()
    width, height = _tile_size(H, W)
    down = math.ceil(N / math.ceil(math.sqrt(1.5 * N)))
    across = math.ceil(N / down)  # the last row as full as can be
    font = _font()
    step_x, step_y = width + _MARGIN, height + (_FONT_SIZE + 4) * _LINES + _MARGIN
    sheet = Image.new("RGB", (_MARGIN + across * step_x, _MARGIN + down * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for index in range(N):
        left, top = _MARGIN + index % across * step_x, _MARGIN + index // across * step_y
        tile = Image.fromarray(pixels[index])
        if tile.size != (width, height):
            # Enlarged without smoothing: the pixels are to be seen as they are.
            smaller = width < W or height < H
            tile = tile.resize((width, height), Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        draw.multiline_text((left, top + height + 3), _fit(captions[index], width, font), "#222222", font, spacing=3)
    write_atomically(png, lambda file: sheet.save(file, format="PNG"))


def _font() -> Any:
    """One that writes more than ASCII, as names of classes may; Pillow's own does not."""
    spec = importlib.util.find_spec("matplotlib")  # it brings that font; nothing of it is imported
    places = (spec.submodule_search_locations or []) if spec else []
    for folder in [*(Path(place, "mpl-data", "fonts", "ttf") for place in places), Path()]:
        try:
            return ImageFont.truetype(folder / "DejaVuSans.ttf", _FONT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(_FONT_SIZE)


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a tile: small images are enlarged by a whole factor, large ones made smaller."""
    longer = max(height, width)
    if longer > _LARGEST:
        return max(1, round(width * _LARGEST / longer)), max(1, round(height * _LARGEST / longer))
    factor = math.ceil(_SMALLEST / longer)
    return width * factor, height * factor


def _fit(text: str, width: int, font: Any) -> str:
    """A caption in at most two lines of ``width`` pixels."""
    lines: list[str] = []
    words = " ".join(text.split()).split(" ")
    while words and len(lines) < _LINES:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        lines.append(line)
    if words:
        lines[-1] += " " + " ".join(words)
    return "\n".join(_cut(line, width, font) for line in lines)


def _cut(line: str, width: int, font: Any) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line.rstrip()}..."
