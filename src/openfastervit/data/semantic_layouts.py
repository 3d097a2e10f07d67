"""Where folders have their images and label maps: the usual layouts, and pairs of files."""

import warnings
from pathlib import Path

from openfastervit.data.folders import list_folder
from openfastervit.data.images import walk_images
from openfastervit.data.labelled import some

_LOSSY = frozenset({".jpg", ".jpeg", ".jfif"})
_LABELS = ("labels", "annotations", "masks")
_LAYOUTS = (
    ("images/{}", tuple(f"{name}/{{}}" for name in _LABELS)),
    ("{}/images", tuple(f"{{}}/{name}" for name in _LABELS)),
    ("{}", ("{}annot",)),
)
"""Where the images of a split are, and where their label maps may be."""


def find_splits(folder: Path) -> dict[str, tuple[str, str]]:
    """Splits by name: the folder of the images and that of the label maps, below ``folder``."""
    for images, candidates in _LAYOUTS:
        parent = folder / images.partition("{}")[0]
        found: dict[str, tuple[str, str]] = {}
        for name in list_folder(parent)[0] if parent.is_dir() else []:
            if not _holds_images(folder / images.format(name)):
                continue
            labels = (labels.format(name) for labels in candidates if _holds_images(folder / labels.format(name)))
            chosen = next(labels, None)
            if chosen is not None:
                found[name] = (images.format(name), chosen)
        if found:
            return found
    return {}


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(names for _, names in walk_images(folder))


def pair_files(folder: Path, images: str, labels: str) -> list[tuple[str, str]]:
    """Images with their label maps, as paths below ``folder``, sorted.

    They have the same path in their folders, but for the suffix. What has no counterpart is left out, with a warning.

    Raises:
        ValueError: If there are no pairs, two files have the same name, or a label map is a JPEG.
    """
    pictures, maps = paths_by_stem(folder, images), paths_by_stem(folder, labels)
    both = sorted(pictures.keys() & maps.keys())
    if not both:
        raise ValueError(
            f"{folder}: no image in {images} ({some(pictures)}) has a label map of the same name in {labels} "
            f"({some(maps)}); rename them"
        )
    lossy = [maps[stem] for stem in both if Path(maps[stem]).suffix.lower() in _LOSSY]
    if lossy:
        raise ValueError(f"{folder / lossy[0]}: JPEG changes the values of label maps; give them as PNG")
    for there, others, what in ((pictures, maps, "images without a label map"), (maps, pictures, "label maps alone")):
        alone = [there[stem] for stem in sorted(there.keys() - others.keys())]
        if alone:
            warnings.warn(f"{folder}: {len(alone)} {what} are left out ({some(alone)})", stacklevel=3)
    return [(pictures[stem], maps[stem]) for stem in both]


def paths_by_stem(folder: Path, below: str) -> dict[str, str]:
    """Paths below ``folder`` of the images in one of its folders, by their path in that without suffix.

    Raises:
        ValueError: If two differ by their suffix alone.
    """
    found: dict[str, str] = {}
    for place, names in walk_images(folder / below):
        for name in names:
            path = Path(place, name)
            stem = path.relative_to(folder / below).with_suffix("").as_posix()
            relative = path.relative_to(folder).as_posix()
            if stem in found:
                raise ValueError(f"{folder}: {found[stem]} and {relative} have the same name; rename or remove one")
            found[stem] = relative
    return found
