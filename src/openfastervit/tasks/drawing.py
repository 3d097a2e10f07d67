"""Boxes, masks and maps of labels as pictures."""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from openfastervit.data.label_maps import IGNORE
from openfastervit.tasks.palette import DARK, LIGHT, Colour, ink, palette

__all__ = ["draw_detections", "draw_labels", "draw_targets", "palette", "tint"]

_SMALLEST = 320
"""Pixels. A smaller image is enlarged, so that words fit on it."""
_MASK_OPACITY = 0.45
_LETTERS = 28
"""Longest name in a picture."""


def draw_detections(
    image: Image.Image, output: Mapping[str, Tensor], classes: Sequence[str], *, threshold: float = 0.5
) -> Image.Image:
    """Draw detections on an image: boxes, translucent masks, and a label with class and score.

    Each class has a colour, the same on every picture of as many classes or more. Labels are kept from lying on one
    another where there is room.

    Args:
        image: The image, RGB. One with sides below 320 pixels is enlarged by a whole factor.
        output: As detectors give it: ``boxes`` ``(N, 4)`` xyxy in the image's pixels, ``labels`` ``(N,)`` from 1, and,
            if there are, ``scores`` ``(N,)`` and ``masks`` ``(N, 1, H, W)`` or ``(N, H, W)``, above 0.5 inside.
        classes: Names, that of label 1 first.
        threshold: Detections with lower scores are not drawn.

    Returns:
        A new picture.

    Raises:
        ValueError: If a label has no class, or masks are not of the image's size.
    """
    objects = _objects(image, output, classes, threshold)
    factor = max(1, -(-_SMALLEST // max(image.size)))
    size = (image.width * factor, image.height * factor)
    pixels = np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    # The largest first, so that what lies in front of it is seen; so are the surest.
    for found in sorted(objects, key=lambda found: -_area(found.box)):
        if found.mask is not None:
            _lay_mask(pixels, _enlarged(found.mask, size), found.colour)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(size) / 400))
    for found in reversed(objects):
        left, top, right, bottom = (round(side * factor) for side in found.box)
        box = (left, top, max(right - 1, left), max(bottom - 1, top))
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=DARK, width=line + 2)
        draw.rectangle(box, outline=found.colour, width=line)
    _write_labels(draw, objects, size, factor)
    return picture


def draw_targets(image: Tensor, target: Mapping[str, Tensor], classes: Sequence[str], *, side: int) -> Tensor:
    """Draw what is to be learned on an image as a network gets it, on a square tile.

    Args:
        image: ``(3, H, W)`` from 0 to 1.
        target: ``boxes``, ``labels`` and, if there are, ``masks`` ``(N, H, W)``.
        classes: Names, that of label 1 first.
        side: Of the tile, in pixels; the image is scaled into its middle.

    Returns:
        ``(3, side, side)`` from 0 to 1, on the CPU.
    """
    drawn = draw_detections(transforms.to_pil_image(image.detach().float().cpu().clamp(0, 1)), target, classes)
    scale = side / max(drawn.size)
    fitted = drawn.resize(
        (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))), Image.Resampling.LANCZOS
    )
    tile = Image.new("RGB", (side, side), LIGHT)
    tile.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return transforms.to_dtype(transforms.pil_to_tensor(tile), torch.float32, scale=True)


def draw_labels(
    image: Image.Image,
    labels: NDArray[Any] | Tensor,
    classes: Sequence[str],
    *,
    colours: Sequence[Colour] | None = None,
    opacity: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """Lay the colours of classes over an image, with a legend of those that occur below it, the largest first.

    Args:
        image: The image, RGB. One with sides below 320 pixels is enlarged by a whole factor.
        labels: ``(H, W)`` whole numbers, the places of the classes, or 255 for pixels of none, which stay as they are.
        classes: Names.
        colours: One a class; by default those of ``palette``.
        opacity: 0 leaves the image, 1 shows the colours alone.
        legend: Whether to tell which colour is which; it adds to the picture's height.

    Returns:
        A new picture.

    Raises:
        ValueError: If sizes do not agree, a label has no class or a class no colour, or the opacity is out of range.
    """
    found = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if found.shape != (image.height, image.width):
        raise ValueError(
            f"labels of shape {list(found.shape)} are not of the image's height and width, {image.height} and "
            f"{image.width}"
        )
    colours = palette(len(classes)) if colours is None else colours
    if len(colours) < len(classes):
        raise ValueError(f"{len(classes)} classes need as many colours, not {len(colours)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity} must be from 0 to 1")
    numbers, counts = np.unique(found, return_counts=True)
    known = (numbers >= 0) & (numbers < len(classes))
    wrong = numbers[~known & (numbers != IGNORE)]
    if len(wrong):
        raise ValueError(f"label {wrong[0]} is none of the {len(classes)} classes, which are 0 to {len(classes) - 1}")
    factor = max(1, -(-_SMALLEST // max(image.size)))
    size = (image.width * factor, image.height * factor)
    pixels = np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    _lay_labels(pixels, found.repeat(factor, axis=0).repeat(factor, axis=1), colours[: len(classes)], opacity)
    picture = Image.fromarray(pixels)
    if not legend:
        return picture
    largest = numbers[known][np.argsort(-counts[known], kind="stable")]
    return _with_legend(picture, [(classes[number], colours[number]) for number in largest])


def tint(image: Tensor, labels: Tensor, count: int, opacity: float = 0.5) -> Tensor:
    """Lay the colours of classes over an image as a network gets it.

    Args:
        image: ``(3, H, W)`` from 0 to 1.
        labels: ``(H, W)``; what is not from 0 to ``count - 1`` stays as it is.
        count: Classes.
        opacity: 0 leaves the image, 1 shows the colours alone.

    Returns:
        ``(3, H, W)`` from 0 to 1, new, on the CPU.
    """
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().copy()
    _lay_labels(pixels, labels.detach().cpu().numpy(), palette(count), opacity)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@dataclass
class _Object:
    """One detection, ready to be drawn; lengths in the image's pixels."""

    box: list[float]
    text: str
    colour: Colour
    mask: NDArray[np.bool_] | None


def _objects(
    image: Image.Image, output: Mapping[str, Tensor], classes: Sequence[str], threshold: float
) -> list[_Object]:
    """What is to be drawn, the surest first."""
    boxes, labels = output["boxes"].detach().float().cpu(), output["labels"].tolist()
    scores = output["scores"].detach().float().cpu() if "scores" in output else None
    masks = output.get("masks")
    wrong = [label for label in labels if not 1 <= label <= len(classes)]
    if wrong:
        raise ValueError(f"label {wrong[0]} is none of the {len(classes)} classes, which are 1 to {len(classes)}")
    if masks is not None and tuple(masks.shape[-2:]) != (image.height, image.width):
        raise ValueError(
            f"masks of shape {list(masks.shape)} are not of the image's height and width, {image.height} and "
            f"{image.width}"
        )
    finite = boxes.isfinite().all(dim=1)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([image.width, image.height] * 2))
    order = range(len(labels)) if scores is None else scores.argsort(descending=True, stable=True).tolist()
    colours = palette(len(classes))
    found: list[_Object] = []
    for place in order:
        if not finite[place] or (scores is not None and not scores[place] >= threshold):
            continue
        label = labels[place]
        text = _shown(classes[label - 1]) + ("" if scores is None else f" {_percent(float(scores[place]))}")
        mask = None if masks is None else (masks[place].reshape(masks.shape[-2:]) > 0.5).cpu().numpy()
        found.append(_Object(boxes[place].tolist(), text, colours[label - 1], mask))
    return found


def _enlarged(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask at the picture's size, with smooth edges."""
    if mask.shape == size[::-1]:
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)) > 127


def _lay_mask(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour) -> None:
    """Lay a mask over pixels ``(H, W, 3)``, in place: translucent, with an outline."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = np.pad(mask[part], 1)
    middle = inside[1:-1, 1:-1]
    edge = middle & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
    weight = np.where(edge, 1.0, _MASK_OPACITY * middle)[..., None]
    pixels[part] = ((1 - weight) * pixels[part] + weight * np.array(colour)).round().astype(np.uint8)


def _lay_labels(pixels: NDArray[np.uint8], labels: NDArray[Any], colours: Sequence[Colour], opacity: float) -> None:
    """Lay a map of labels over pixels ``(H, W, 3)``, in place."""
    inside = (labels >= 0) & (labels < len(colours))
    laid = np.array(colours, dtype=np.float32).reshape(-1, 3)[labels[inside]]
    pixels[inside] = ((1 - opacity) * pixels[inside] + opacity * laid).round().astype(np.uint8)


def _write_labels(draw: ImageDraw.ImageDraw, objects: Sequence[_Object], size: tuple[int, int], factor: int) -> None:
    """Write a label at each box, where none lies already if there is such a place."""
    font = _font(max(11, min(32, round(max(size) / 45))))
    ascent, descent = font.getmetrics()
    high, margin = ascent + descent + 2, 3
    placed: list[tuple[float, float, float, float]] = []
    boxes = [[side * factor for side in found.box] for found in objects]
    for found, box in zip(objects, boxes, strict=True):
        placed.append(_free_spot(box, font.getlength(found.text) + 2 * margin, high, size, placed, boxes))
    for found, spot in reversed(list(zip(objects, placed, strict=True))):
        draw.rectangle(spot, fill=found.colour, outline=DARK)
        draw.text((spot[0] + margin, spot[1] + 1), found.text, fill=ink(found.colour), font=font)


def _free_spot(
    box: Sequence[float],
    wide: float,
    high: float,
    size: tuple[int, int],
    placed: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
) -> tuple[float, float, float, float]:
    """Where a label of that width and height goes: at its box, inside the picture, where it hides least.

    Above the box is best, then in it, below it, and a line further off; left before right.
    """
    left, top, right, bottom = box
    spots: list[tuple[float, int, tuple[float, float, float, float]]] = []
    for y in (top - high, top, bottom, bottom - high, top - 2 * high, bottom + high, top + high):
        for x in (left, right - wide):
            x, y = (max(0.0, min(value, most)) for value, most in ((x, size[0] - wide - 1), (y, size[1] - high - 1)))
            spot = (x, y, x + wide, y + high)
            # Other labels must be read; small objects are lost below a label, large ones are not.
            hidden = 3 * sum(_overlap(spot, other) for other in placed)
            hidden += sum(_overlap(spot, other) for other in boxes if _area(other) < 3 * wide * high)
            spots.append((hidden, len(spots), spot))
    return min(spots)[2]


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """The picture with a row of coloured squares and names below it, or as many rows as it takes."""
    if not entries:
        return picture
    font = _font(max(12, min(28, round(max(picture.size) / 45))))
    ascent, descent = font.getmetrics()
    line, gap = ascent + descent, 8
    names = [_shown(name) for name, _ in entries]
    column = min(line + 2 * gap + max(font.getlength(name) for name in names), picture.width - gap)
    columns = max(1, int((picture.width - gap) // column))
    rows = -(-len(entries) // columns)
    whole = Image.new("RGB", (picture.width, picture.height + rows * (line + gap) + gap), LIGHT)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for place, (name, (_, colour)) in enumerate(zip(names, entries, strict=True)):
        x, y = gap + place % columns * column, picture.height + gap + place // columns * (line + gap)
        draw.rectangle((x, y, x + line - 2, y + line - 2), fill=colour, outline=DARK)
        draw.text((x + line + gap / 2, y), name, fill=DARK, font=font)
    return whole


def _percent(score: float) -> str:
    """A score of less than 1 is not rounded up to it."""
    return f"{min(score, 0.99):.0%}" if score < 1 else "100%"


def _shown(name: str) -> str:
    """A class's name, on one line, of text alone and not too long."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 3]}..."


@functools.cache
def _font(size: int) -> Any:
    """One that writes more than ASCII, as names of classes may; Pillow's own does not."""
    spec = importlib.util.find_spec("matplotlib")  # it brings that font; nothing of it is imported
    places = (spec.submodule_search_locations or []) if spec else []
    for folder in [*(Path(place, "mpl-data", "fonts", "ttf") for place in places), Path()]:
        try:
            return ImageFont.truetype(folder / "DejaVuSans.ttf", size)
        except OSError:
            continue
    return ImageFont.load_default(size)
