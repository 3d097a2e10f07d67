"""Folders of small images with label maps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pocket import picture

SIZE = (12, 10)
"""Width and height of the images."""


def write_pairs(images: Path, labels: Path, maps: Mapping[str, np.ndarray], suffix: str = ".jpg") -> None:
    """An image of each name and its label map, as 8-bit grayscale PNG."""
    for place, (name, values) in enumerate(maps.items()):
        for path in (images / f"{name}{suffix}", labels / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        picture(place, (values.shape[1], values.shape[0])).save(images / f"{name}{suffix}")
        Image.fromarray(values.astype(np.uint8)).save(labels / f"{name}.png")


def label_map(seed: int, values: int = 3) -> np.ndarray:
    """``(H, W)`` uint8: 0 to ``values - 1``, all of them somewhere."""
    drawn = np.random.default_rng(seed).integers(0, values, SIZE[::-1], dtype=np.uint8)
    drawn.flat[:values] = np.arange(values)
    return drawn
