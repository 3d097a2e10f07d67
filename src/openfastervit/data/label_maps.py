"""Maps of labels as files: images whose pixels are indices of classes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from openfastervit.data.images import ImageError

IGNORE = 255
"""The label of pixels that count for nothing, neither in losses nor in metrics."""

LARGEST = 65535
"""The largest index that a PNG can hold."""


def read_label_map(path: str | os.PathLike[str], size: tuple[int, int] | None = None, what: str = "it") -> np.ndarray:
    """The values of an image's pixels as they are in the file, ``(H, W)``: indices, not colours.

    Args:
        path: A grayscale or palette image.
        size: Width and height that it must have.
        what: How errors call it.

    Raises:
        ImageError: If it cannot be read, has colours in place of indices, or is not of that size.
    """
    with reading(what), Image.open(path) as image:
        if size is not None and image.size != size:
            raise ImageError(
                f"{what} has {image.width} x {image.height} pixels and the image {size[0]} x {size[1]}; "
                "give them the same size (label maps are scaled without interpolation)"
            )
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ImageError(
                f"{what} is of the mode {image.mode}, colours in place of one number a pixel; "
                "write the index of each pixel's class into a grayscale or palette PNG"
            )
        # Pillow spreads grays of 2 and 4 bits over 0 to 255; here the numbers are meant.
        step = {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1) if image.tile else 1
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values // np.array(step, dtype=values.dtype)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever goes wrong within, as an ``ImageError`` that names the file: Pillow raises many kinds."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{what}: there is no such file") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{what} does not decode ({reason})") from error


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as ``open_image`` turns it, from its header."""
    orientation = 1
    with Image.open(path) as image:
        with contextlib.suppress(Exception):  # a damaged EXIF block: not turned
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
