"""Images on disk: finding them, and decoding any of them to 8-bit RGB or grayscale."""

import functools
import os
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

ImageMode = Literal["RGB", "L"]

SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Names that count as images in a folder, in any case."""


class ImageError(ValueError):
    """An image cannot be read; the message says why, and leaves its path to the caller."""


def find_images(source: str | os.PathLike[str]) -> list[Path]:
    """The images that ``source`` stands for: itself if it is a file, else all below it, sorted.

    In a folder an image is known by its suffix. Hidden files and folders are passed over; symbolic links are followed.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If a folder holds no image.
        OSError: If a folder cannot be listed.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"no image or folder at {source}; check the path")
    found = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(source, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up: its images are there already
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [
            Path(folder, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        raise ValueError(f"no images in {source} or below it; looked for {' '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def open_image(path: str | os.PathLike[str], mode: ImageMode = "RGB") -> Image.Image:
    """Decode an image of any kind that Pillow knows, upright, with 8 bits a channel.

    The camera's orientation (EXIF) is applied. Alpha is dropped, as the loaders of timm and torchvision do, so that a
    network sees what it would see in training. Of an animation the first frame is taken. 16-bit values are scaled, not
    clipped.

    Raises:
        ImageError: If it cannot be read or decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_eight_bits(_upright(image), mode)
    except FileNotFoundError as error:
        raise ImageError("there is no such file") from error
    except PermissionError as error:
        raise ImageError("reading it is not permitted") from error
    except UnidentifiedImageError as error:
        empty = Path(path).stat().st_size == 0
        raise ImageError("the file is empty" if empty else "it is not an image, or of a kind unknown here") from error
    except Exception as error:  # Pillow's decoders raise many kinds, some their own
        raise ImageError(f"it does not decode ({' '.join(str(error).split()) or type(error).__name__})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are decoded by now
        return image


def to_eight_bits(image: Image.Image, mode: ImageMode) -> Image.Image:
    """An image of any Pillow mode as "RGB" or "L".

    Integers of more than 8 bits are read as 16-bit ones, and scaled. Floats are read as 0 to 1 where none is larger,
    else as 0 to 255.
    """
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # "I", "I;16", "I;16B" ...: Pillow's own conversion clips at 255
        image = _from_array(np.asarray(image, dtype=np.float64) / 257)
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        image = _from_array(values * 255 if values.max() <= 1 else values)
    elif image.mode == "LAB":
        image = ImageCms.applyTransform(image, _lab_to_rgb()) or image
    elif image.mode == "La":  # premultiplied alpha, which Pillow converts to nothing but "LA"
        image = image.convert("LA")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert(mode)


def _from_array(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


@functools.cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB")
