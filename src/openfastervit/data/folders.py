"""Folders of images with a sub-folder for each class: the layout of torchvision's ImageFolder."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from openfastervit.data.images import SUFFIXES, ImageMode, is_image_name, open_image, walk_images
from openfastervit.data.labelled import order_classes, some
from openfastervit.data.packed import PackedStrings
from openfastervit.data.splits import SPLITS


class FolderSource:
    """Images below class folders, by class and then by path, as torchvision's ImageFolder orders them.

    Classes are the sub-folders, sorted by name. What is hidden is passed over. A class folder without images stays a
    class, with a warning; so do images in no class folder, which are left out.

    Args:
        folder: Holds the class folders.
        classes: A fixed order of classes; those without a folder have no images.
        mode: What images are decoded to.

    Raises:
        ValueError: If there are no class folders or no images, or a class folder is not among ``classes``.
        OSError: If a folder cannot be listed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, classes: Sequence[str] | None = None, mode: ImageMode = "RGB"
    ) -> None:
        self.folder = Path(folder)
        self.mode = mode
        names, loose = list_folder(self.folder)
        if not names:
            mend = "put those of each class in a folder named after it" if loose else "check the path"
            raise ValueError(f"{folder}: {loose or 'no'} images, and no class folders; {mend}")
        if loose:
            warnings.warn(f"{folder}: {loose} images in no class folder are left out", stacklevel=2)
        paths: list[str] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, name in enumerate(names):
            found = _images_below(self.folder, name)
            paths += found
            labels += [label] * len(found)
            if not found:
                empty.append(name)
        if not paths:
            raise ValueError(
                f"{folder}: no images in its folders ({some(names)}); looked for {' '.join(sorted(SUFFIXES))}"
            )
        if empty:
            warnings.warn(f"{folder}: no images in the class folders {some(empty)}; they stay classes", stacklevel=2)
        self.labels, self.classes = order_classes(labels, names, classes, str(folder))
        self._paths = PackedStrings(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The path of an image below the folder, with "/" between its parts."""
        return self._paths[index].replace(os.sep, "/")

    def open(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            ImageError: If it cannot be read.
        """
        return open_image(self.folder / self._paths[index], self.mode)


def list_folder(folder: Path) -> tuple[list[str], int]:
    """The sub-folders that are not hidden, sorted, and the number of images beside them.

    Raises:
        OSError: If it cannot be listed.
    """
    subfolders: list[str] = []
    images = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith("."):
                    subfolders.append(entry.name)
            elif is_image_name(entry.name):
                images += 1
    return sorted(subfolders), images


def split_folders(folder: Path) -> dict[str, Path]:
    """Sub-folders that are splits, by name.

    One that holds images itself is none: it is a class that is called like one ("train"), or has no labels.

    Raises:
        OSError: If a folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in entries if entry.name.lower() in SPLITS and entry.is_dir())
    return {name: folder / name for name in found if not list_folder(folder / name)[1]}


def _images_below(folder: Path, name: str) -> list[str]:
    """Paths relative to ``folder``, sorted by their folder and then by name."""
    start = len(str(folder / "x")) - 1
    found = sorted((below, sorted(images)) for below, images in walk_images(folder / name))
    return [os.path.join(below, image)[start:] for below, images in found for image in images]  # noqa: PTH118
