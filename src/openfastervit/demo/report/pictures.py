"""Pictures for the report, as PNG files in memory."""

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openfastervit.inference.explain import CarrierAttention, pooling_footprint

TILE = 64
GAP = 6
HEAT = np.array([255.0, 176.0, 32.0])
OWN = np.array([96.0, 200.0, 255.0])
PAPER, INK = 60.0, 215.0  # how bright the scan is where attention is even
DIM = 0.4  # how much of that is left where there is no attention


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def scan_png(scan: NDArray[np.uint8]) -> bytes:
    """A scan ``(8, 8)`` as it is: one pixel a pixel, grayscale."""
    return png(Image.fromarray(scan))


def data_uri(file: bytes) -> str:
    """A PNG file as the source of an ``<img>``."""
    return "data:image/png;base64," + base64.b64encode(file).decode("ascii")


def carriers_png(image: Tensor, attention: CarrierAttention, index: int, most: float) -> bytes:
    """One tile a carrier, in their places on the map: the image, and over it what the carrier looks at.

    Args:
        image: ``(1, H, W)``, from -1 (paper) to 1 (ink).
        attention: Of one block.
        index: The image's place in the batch of ``attention``.
        most: The attention to a cell that is shown in full colour.
    """
    maps = attention.maps[index]
    rows, columns, height, width = maps.shape
    even = 1 / (height * width)
    tiles = F.interpolate(maps.view(1, -1, height, width), size=(TILE, TILE), mode="bilinear")[0]
    shaded = _shaded(image, tiles.view(rows, columns, TILE, TILE) / even, most / even)
    size = rows * TILE + (rows - 1) * GAP, columns * TILE + (columns - 1) * GAP
    sheet = np.zeros((*size, 4), dtype=np.uint8)
    own = pooling_footprint((height, width), (rows, columns)) > 0
    for row in range(rows):
        for column in range(columns):
            tile = shaded[row, column]
            tile[_outline(own[row, column])] = OWN
            top, left = row * (TILE + GAP), column * (TILE + GAP)
            sheet[top : top + TILE, left : left + TILE, :3] = tile.round().astype(np.uint8)
            sheet[top : top + TILE, left : left + TILE, 3] = 255
    return png(Image.fromarray(sheet))


def map_png(image: Tensor, relative: Tensor) -> bytes:
    """The image, and over it a map.

    Args:
        image: ``(1, H, W)``, from -1 (paper) to 1 (ink).
        relative: ``(h, w)``: multiples of what it would be if it were even. Twice that and more is shown in full
            colour, or the largest value where that is larger.
    """
    tile = F.interpolate(relative[None, None], size=(TILE, TILE), mode="bilinear")[0, 0]
    return png(Image.fromarray(_shaded(image, tile, max(2.0, float(tile.max()))).round().astype(np.uint8)))


def _shaded(image: Tensor, relative: Tensor, most: float) -> NDArray[np.float32]:
    """``(..., TILE, TILE, 3)``: the image, amber where a map ``(..., TILE, TILE)`` is above 1, dark where below."""
    relative = relative[..., None]
    heat = ((relative - 1) / max(most - 1, 1e-6)).clamp(0, 1).pow(0.7).mul(0.9).numpy()
    light = (DIM + (1 - DIM) * relative.clamp(0, 1)).numpy()
    scan = F.interpolate(image[None], size=(TILE, TILE), mode="bilinear", antialias=True)[0, 0].clamp(-1, 1).numpy()
    base = (PAPER + (INK - PAPER) * (scan + 1) / 2)[..., None]
    shaded: NDArray[np.float32] = base * light * (1 - heat) + HEAT * heat
    return shaded


def _outline(cells: Tensor) -> NDArray[np.bool_]:
    """The border, one pixel wide, of cells of a map, on a tile."""
    large = F.interpolate(cells[None, None].float(), size=(TILE, TILE), mode="nearest")
    inside = -F.max_pool2d(-F.pad(large, (1, 1, 1, 1)), 3, stride=1)
    border: NDArray[np.bool_] = torch.logical_and(large > 0, inside == 0)[0, 0].numpy()
    return border
