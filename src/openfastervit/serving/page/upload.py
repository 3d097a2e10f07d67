"""An image that a visitor gave: a file of theirs alone, of a few kinds, and of so many pixels at most."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from openfastervit.data.images import ImageError, open_image

KINDS = ("JPEG", "PNG", "WEBP")
WAITING = 32
"""Images that wait for their turn at most."""
KEPT = 3600
"""Seconds that uploads and pictures are kept."""


def open_upload(told: Any, folder: str | os.PathLike[str], max_pixels: int) -> Image.Image:
    """Decode an uploaded image, upright, RGB.

    Args:
        told: What the browser tells of it: a mapping with ``path``. Nothing in it is believed.
        folder: Where uploads lie.
        max_pixels: An image with more is not decoded.

    Raises:
        ImageError: If there is no such upload, or it is no such image; the message holds no path.
    """
    path = told.get("path") if isinstance(told, Mapping) else None
    if not isinstance(path, str) or not is_below(path, folder):
        raise ImageError("there is no such upload; drop the image once more")
    if not Path(path).is_file():
        raise ImageError("the upload is gone; drop the image once more")
    return open_image(path, max_pixels=max_pixels, formats=KINDS)


def is_below(path: str, folder: str | os.PathLike[str]) -> bool:
    """Whether a path is that of something in a folder, links followed."""
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError):  # a path that cannot be one
        return False
