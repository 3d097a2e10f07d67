"""What carrier tokens look at in an image, as small pictures with words: a row of them fits any screen."""

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from openfastervit.data.images import to_eight_bits
from openfastervit.inference.checkpoint import load_classifier
from openfastervit.inference.dense import checkpoint_file
from openfastervit.inference.explain import CarrierAttention, NothingToShowError, carrier_attention
from openfastervit.inference.explain.picture import evenly, overlay, spread
from openfastervit.inference.exported import is_exported
from openfastervit.inference.predictor import find_device
from openfastervit.inference.preparation import Preparation
from openfastervit.models import FasterViT

_SURE = 2.0
"""Full amber is for this multiple of even attention at least: less is not made to look like much."""
_SMALLEST = 320
"""Pixels of a picture's longer side at least."""
_OWN = (96, 200, 255)


@dataclass(frozen=True)
class Figure:
    """A picture of one carrier."""

    png: bytes
    caption: str
    alt: str
    """What the picture shows, for those who do not see it."""


@dataclass(frozen=True)
class Look:
    """Some carriers of one block."""

    figures: tuple[Figure, ...]
    place: str
    """Which block, and how many carriers it has."""


class Inside:
    """A FasterViT that is looked into. Threads may share one: they take turns.

    Args:
        network: In evaluation mode.
        preparation: Of its images.
        device: Where it is moved to.
    """

    def __init__(self, network: FasterViT, preparation: Preparation, device: torch.device) -> None:
        self._network, self._preparation, self._device = network.to(device), preparation, device
        self._turn = threading.Lock()

    def look(self, image: Image.Image) -> Look:
        """What up to four carriers of the last block that has any look at.

        Raises:
            ImageError: If the image is too thin a strip to scale.
            NothingToShowError: If there are no carriers. A ``ValueError``.
        """
        pixels = self._preparation.pixels(to_eight_bits(image, self._preparation.mode))
        with self._turn:
            block = carrier_attention(self._network, self._preparation.normalised([pixels], self._device))[-1]
        rows, columns = block.maps.shape[1:3]
        _, stage, *_, number = block.name.split(".")
        where = f"Stage {stage}, block {number}: {rows} \u00d7 {columns} carriers"
        return Look(tuple(_figures(block, pixels)), where)


def look_into(checkpoint: Path, task: str, device: str) -> Inside | str:
    """A checkpoint's network, ready to be looked into, or why it cannot be.

    Args:
        checkpoint: A file, or the folder of a run.
        task: What it was trained for.
        device: As of ``find_device``.
    """
    if task != "classification":
        return f"What carrier tokens look at is shown of classifiers; this is a network for {task}."
    if is_exported(checkpoint):
        return "An exported network cannot be looked into; give its checkpoint to see what carrier tokens look at."
    network, _, told = load_classifier(checkpoint_file(checkpoint))
    if not isinstance(network, FasterViT):
        return f"A {type(network).__name__} has no carrier tokens: they are a FasterViT's."
    inside = Inside(network, Preparation.of(told), find_device(device))
    try:
        inside.look(Image.new("RGB", (64, 64)))
    except NothingToShowError as error:
        return f"{str(error)[:1].upper()}{str(error)[1:]}."
    return inside


def _figures(block: CarrierAttention, pixels: Tensor) -> Iterator[Figure]:
    chosen = list(spread(block))
    relative = evenly(block.over_image("bilinear")[0]).cpu()
    most = max(_SURE, *(float(relative[place].max()) for place in chosen))
    elsewhere = block.elsewhere()[0]
    photograph = pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy() / np.float32(255)
    for row, column in chosen:
        shown = overlay(photograph, relative[row, column].numpy(), most)
        carrier = f"Carrier in row {row + 1}, column {column + 1}"
        share = f"{float(elsewhere[row, column]):.0%} from other windows"
        place = whereabouts(block.maps[0, row, column])
        yield Figure(
            _drawn(shown, block, row, column),
            f"{carrier}: {share}".replace("%", "\u00a0%"),
            f"{carrier} looks most at the {place} of the image; {share.replace('%', ' percent')}.",
        )


def _drawn(shown: np.ndarray, block: CarrierAttention, row: int, column: int) -> bytes:
    """A map over the image, with lines between windows and a frame around the carrier's own."""
    picture = Image.fromarray((shown.clip(0, 1) * 255).round().astype(np.uint8))
    factor = max(1, -(-_SMALLEST // max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    height, width = (side * block.stride * factor for side in block.window)
    for y in range(height, picture.height, height):
        draw.line((0, y, picture.width, y), fill=(150, 150, 150))
    for x in range(width, picture.width, width):
        draw.line((x, 0, x, picture.height), fill=(150, 150, 150))
    top, left = row // block.carrier_size * height, column // block.carrier_size * width
    right, bottom = min(left + width, picture.width) - 1, min(top + height, picture.height) - 1
    draw.rectangle((left, top, right, bottom), outline=_OWN, width=max(3, max(picture.size) // 100))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def whereabouts(attention: Tensor) -> str:
    """Which ninth of a map ``(H, W)`` has the most, in words."""
    height, width = attention.shape
    ninths = torch.nn.functional.adaptive_avg_pool2d(attention[None].float(), (min(3, height), min(3, width)))[0]
    row, column = divmod(int(ninths.argmax()), ninths.shape[1])
    down = ("upper", "middle", "lower") if ninths.shape[0] == 3 else ("upper", "lower")
    across = ("left", "middle", "right") if ninths.shape[1] == 3 else ("left", "right")
    vertical, horizontal = down[row], across[column]
    return vertical if vertical == horizontal else f"{vertical} {horizontal}"
