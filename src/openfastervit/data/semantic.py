"""Images with a map of labels each, the class of every pixel: folders of images and of index PNGs."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from openfastervit.data.images import ImageError, open_image
from openfastervit.data.label_maps import IGNORE, LARGEST, read_label_map, reading, upright_size
from openfastervit.data.labelled import check_classes, order_classes
from openfastervit.data.packed import PackedStrings
from openfastervit.data.semantic_classes import CAMVID, count_classes, describe_classes
from openfastervit.data.semantic_layouts import find_splits, pair_files
from openfastervit.data.splits import choose_split

_OUTSIDE = 256


class SemanticImages:
    """Images with label maps, by position: random access, the same order every time; can be pickled.

    Args:
        folder: Holds all of the files.
        pairs: Paths below it, with "/" between their parts: an image, and its label map.
        classes: Their names, in the order of the labels.
        ignore_label: A value in the files that is ignored. 255 always is.
        reduce_zero_label: Whether the files' 0 is ignored and 1 is the first class, as in ADE20K.
        places: The label of each of the files' classes; by default the first is 0, the second 1, and so on.

    Raises:
        ValueError: If names are missing or come twice, or are more than 8-bit labels can tell apart.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        pairs: Sequence[tuple[str, str]],
        classes: Sequence[str],
        *,
        ignore_label: int | None = None,
        reduce_zero_label: bool = False,
        places: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        check_classes(classes, "classes")
        self.folder = Path(folder)
        self.classes = tuple(classes)
        self._images = PackedStrings(image for image, _ in pairs)
        self._labels = PackedStrings(labels for _, labels in pairs)
        first = int(reduce_zero_label)
        labels = np.arange(len(classes)) if places is None else np.asarray(places)
        if max(len(classes), len(labels)) > IGNORE - first:
            raise ValueError(
                f"classes: {len(classes)} are more than the {IGNORE - first} that label maps can hold here"
            )
        self._first, self._count = first, len(labels)
        self._ignored = {IGNORE} | ({0} if reduce_zero_label else set())
        self._ignored |= set() if ignore_label is None else {ignore_label}
        table = np.full(LARGEST + 1, _OUTSIDE, dtype=np.uint16)
        table[first : first + len(labels)] = labels
        table[list(self._ignored)] = IGNORE
        self._table = table

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The path of an image below the folder, with "/" between its parts."""
        return self._images[index]

    def open(self, index: int) -> Image.Image:
        """The image, decoded to RGB.

        Raises:
            ImageError: If it cannot be read.
        """
        return open_image(self.folder / self._images[index])

    def labels(self, index: int) -> np.ndarray:
        """The label of each pixel, ``(H, W)`` uint8; 255 where it is ignored.

        Raises:
            ImageError: If the label map cannot be read, is not of the image's size, or holds a value that is neither a
                class nor ignored: a training takes another image then, an evaluation leaves this one out, and both
                tell so. It names the label map, the value and the mend.
        """
        name = self._labels[index]
        with reading(self._images[index]):
            size = upright_size(self.folder / self._images[index])
        values = read_label_map(self.folder / name, size, f"its label map {name}")
        labels = self._table[values.clip(0, LARGEST)]
        outside = (labels == _OUTSIDE) | (values < 0) | (values > LARGEST)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            value = int(values[row, column])
            raise ImageError(
                f"its label map {name} holds the value {value} at row {row}, column {column}, but the "
                f"{self._count} classes are {self._first} to {self._first + self._count - 1}, and ignored is "
                f"{' and '.join(map(str, sorted(self._ignored)))}; mend the file, or give ignore_label={value} or the "
                "right number of classes"
            )
        return labels.astype(np.uint8)


def open_semantic(
    data: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    ignore_label: int | None = None,
    num_classes: int | None = None,
    reduce_zero_label: bool | None = None,
) -> SemanticImages:
    """Open images with label maps, in one of the usual layouts.

    - ``images/SPLIT`` with ``labels/SPLIT``, ``annotations/SPLIT`` or ``masks/SPLIT``;
    - ``SPLIT/images`` with ``SPLIT/labels``, ``SPLIT/annotations`` or ``SPLIT/masks``;
    - ``SPLIT`` with ``SPLITannot``.

    An image and its label map have the same path in their folders, but for the suffix; what has no counterpart is
    left out, with a warning. Label maps are grayscale or palette PNGs of 8 or 16 bits, or other images without loss.

    CamVid is known by the names of its files: 11 classes, the value 11 is ignored. ADE20K is known by
    ``images/training``, ``images/validation`` and ``annotations``, together with its ``objectInfo150.txt``, the names
    of its files or 150 classes: the value 0 is ignored, 1 to 150 are the classes.

    The names of classes are those in the file ``classes.txt``, one a line, in ``data``; else those of ADE20K's
    ``objectInfo150.txt``, or CamVid's; else numbers. How many there are without names follows from ``num_classes`` or
    from the largest value in the label maps of all splits.

    Args:
        data: A folder.
        split: "train", "val", "test", or as the data calls it. Names that mean the same stand for each other.
        classes: A fixed order of classes, such as a checkpoint's. Where both they and the data have names, the data's
            classes are found by name: there may be fewer, not others. Else they are the data's in their order.
        ignore_label: A value in the files that is ignored; by default what the layout says. 255 always is.
        num_classes: How many classes the files have.
        reduce_zero_label: Whether the files' 0 is ignored and 1 is the first class; by default what the layout says.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has none of the layouts, no such split or no pairs, or classes do not fit.
        OSError: If a folder cannot be listed.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}; check the path")
    if ignore_label is not None and not 0 <= ignore_label <= LARGEST:
        raise ValueError(f"ignore_label={ignore_label} must be a value that a PNG can hold, from 0 to {LARGEST}")
    splits = find_splits(folder)
    if not splits:
        raise ValueError(
            f"{folder}: no images with label maps in a layout known here, which are images/SPLIT with labels/SPLIT "
            "(or annotations, masks), SPLIT/images with SPLIT/labels, and SPLIT with SPLITannot; SPLIT is train or val"
        )
    chosen = choose_split(split, tuple(splits), str(folder))
    assert chosen is not None  # there are splits
    pairs = pair_files(folder, *splits[chosen])

    about = describe_classes(folder, splits, pairs, classes, num_classes, reduce_zero_label)
    ignored = about.ignore_label if ignore_label is None else ignore_label
    count = about.count
    if count is None:
        count = count_classes(folder, [labels for _, labels in splits.values()], ignored, about.reduce_zero_label)
    if about.names is None and classes is None:
        classes = [f"{about.prefix}{place}" for place in range(count)]
    places, names = order_classes(np.arange(count), about.names, classes, str(folder))
    return SemanticImages(
        folder, pairs, names, ignore_label=ignored, reduce_zero_label=about.reduce_zero_label, places=places
    )


__all__ = ["CAMVID", "IGNORE", "SemanticImages", "open_semantic"]
