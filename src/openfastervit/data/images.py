"""Images on disk: finding them, and decoding any of them to 8-bit RGB or grayscale."""

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

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

MAX_PIXELS = 178_956_970
"""The largest image that is decoded, in pixels: as many as Pillow opens at most, unless it is told otherwise."""


class ImageError(ValueError):
    """An image cannot be read; the message says why, and leaves its path to the caller."""


class ImageTooLargeError(ImageError):
    """An image has more pixels than are decoded."""


def find_images(source: str | os.PathLike[str]) -> list[Path]:
    """The images that ``source`` stands for, as a list. See ``iterate_images``."""
    return [Path(image) for image in iterate_images(source)]


def iterate_images(source: str | os.PathLike[str]) -> Iterator[str]:
    """The images that ``source`` stands for: itself if it is a file, else all below it, sorted by folders and names.

    In a folder an image is known by its suffix. Hidden files and folders are passed over; symbolic links are followed.
    No more is held in memory than the names in one folder and those above it.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If a folder holds no image: at its end.
        OSError: If a folder cannot be listed.
    """
    source = Path(source)
    if source.is_file():
        yield str(source)
        return
    if not source.is_dir():
        raise FileNotFoundError(f"no image or folder at {source}; check the path")
    found = False
    for image in _descend(str(source), set()):
        found = True
        yield image
    if not found:
        raise ValueError(f"no images in {source} or below it; looked for {' '.join(sorted(SUFFIXES))}")


def _descend(folder: str, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:  # a link back up: its images are there already
        return
    seen.add(real)
    # Folders among the images, by name: the order of sorted paths.
    for name, is_folder in _listed(folder):
        path = os.path.join(folder, name)  # noqa: PTH118  called often
        if is_folder:
            yield from _descend(path, seen)
        else:
            yield path


def _listed(folder: str) -> list[tuple[str, bool]]:
    """The images and folders in a folder, sorted, each with whether it is a folder."""
    with os.scandir(folder) as entries:
        kinds = ((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        return sorted((name, is_folder) for name, is_folder in kinds if is_folder or is_image_name(name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: what opens it tells
        return False


def walk_images(source: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``source`` down, with the names of the images in it, by the rules of ``iterate_images``.

    Raises:
        OSError: If a folder cannot be listed.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(source, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up: its images are there already
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder, [name for name in names if is_image_name(name)]


def is_image_name(name: str) -> bool:
    """Whether a file of that name counts as an image: it has one of ``SUFFIXES`` and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122  called often


def _raise(error: OSError) -> None:
    raise error


def open_image(
    source: str | os.PathLike[str] | IO[bytes],
    mode: ImageMode = "RGB",
    *,
    max_pixels: int | None = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Decode an image of any kind that Pillow knows, upright, with 8 bits a channel.

    The camera's orientation (EXIF) is applied. Alpha is dropped, as the loaders of timm and torchvision do, so that a
    network sees what it would see in training. Of an animation the first frame is taken. 16-bit values are scaled, not
    clipped.

    Args:
        source: A path, or a binary file that can be read and searched; it is read from its start and stays open.
        mode: Colour or grayscale.
        max_pixels: An image that has more by its header is not decoded; None leaves the limit to Pillow. Where
            Pillow's own (``PIL.Image.MAX_IMAGE_PIXELS``, doubled) is lower, that one holds.
        formats: Pillow's names of the kinds that are tried, such as "JPEG"; by default all.

    Raises:
        ImageTooLargeError: If it has too many pixels.
        ImageError: If it cannot be read or decoded.
    """
    try:
        with Image.open(source, formats=formats) as image:
            _check_header(image, max_pixels)
            image.load()
            _turn_upright(image)
            decoded = to_eight_bits(image, mode)
            return image.copy() if decoded is image else decoded  # free of the file
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("there is no such file") from error
    except PermissionError as error:
        raise ImageError("reading it is not permitted") from error
    except UnidentifiedImageError as error:
        empty = _size_in_bytes(source) == 0
        raise ImageError("the file is empty" if empty else "it is not an image, or of a kind unknown here") from error
    except Exception as error:  # Pillow's decoders raise many kinds, some their own
        # Pillow finds some bombs itself, when it opens a file or meets a large frame within.
        numbers = re.findall(r"\d+", str(error)) if isinstance(error, Image.DecompressionBombError) else []
        if len(numbers) >= 2:
            raise ImageTooLargeError(_too_large(int(numbers[0]), int(numbers[1]))) from error
        raise ImageError(f"it does not decode ({' '.join(str(error).split()) or type(error).__name__})") from error


def _check_header(image: Image.Image, max_pixels: int | None) -> None:
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise ImageTooLargeError(_too_large(pixels, max_pixels))
    if pixels == 0:
        raise ImageError(f"it has no pixels: {image.width} x {image.height}")
    if image.format == "EPS":  # Pillow would run Ghostscript on it
        raise ImageError("it is PostScript, a program, and not an image")


def _too_large(pixels: int, limit: int) -> str:
    return f"it has {pixels} pixels, more than the limit of {limit}"


def _size_in_bytes(source: str | os.PathLike[str] | IO[bytes]) -> int:
    if isinstance(source, str | os.PathLike):
        return Path(source).stat().st_size
    return source.seek(0, io.SEEK_END)


def _turn_upright(image: Image.Image) -> None:
    # A damaged EXIF block says nothing about the pixels, which are decoded by now.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def to_eight_bits(image: Image.Image, mode: ImageMode) -> Image.Image:
    """An image of any Pillow mode as "RGB" or "L".

    Integers of more than 8 bits are read as 16-bit ones, and scaled. Floats are read as 0 to 1 where none is larger,
    else as 0 to 255.
    """
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # "I", "I;16", "I;16B" ...: Pillow's own conversion clips at 255
        # Whole numbers all along: 4 bytes a pixel where floats would take 8. 257 is odd, so that there are no ties.
        values = (np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        values = values * 255 if values.max() <= 1 else values
        image = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    elif image.mode == "LAB":
        image = ImageCms.applyTransform(image, _lab_to_rgb()) or image
    elif image.mode == "La":  # premultiplied alpha, which Pillow converts to nothing but "LA"
        image = image.convert("LA")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert(mode)


@functools.cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB")
