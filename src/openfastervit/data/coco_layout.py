"""Where a data set in COCO's format keeps its annotations and images."""

import re
from pathlib import Path
from typing import NamedTuple

from openfastervit.data.labelled import some
from openfastervit.data.splits import SPLITS, match_split

ROBOFLOW = "_annotations.coco.json"
"""The file that Roboflow's exports have beside the images of each split."""


class CocoPaths(NamedTuple):
    """Where a split is."""

    annotations: Path
    """The json file."""
    images: Path
    """The folder that its file names start from."""


def find_coco(data: Path | None, split: str, annotations: Path | None = None, images: Path | None = None) -> CocoPaths:
    """Find the annotations and images of a split.

    Known layouts are COCO's (``annotations/instances_train2017.json`` and the folder ``train2017``, of any year or
    none, also ``annotations/train.json``, and image folders below ``images``) and Roboflow's
    (``train/_annotations.coco.json`` beside the images).

    Args:
        data: The folder of all; None where both files are named.
        split: "train", "val" or what the data calls it, with its year or without. Names that mean the same stand for
            each other ("valid", "validation", "test").
        annotations: The json file, where it is elsewhere.
        images: The folder of images, where it is elsewhere.

    Raises:
        FileNotFoundError: If ``data``, or what was named, is not there.
        ValueError: If the layout is not known, or leaves two files to choose from; says what was looked for.
    """
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f"no folder {data}; check the path")
    if data is None and (annotations is None or images is None):
        raise ValueError("without a folder of data, name both the annotation file and the folder of images")
    if annotations is None:
        assert data is not None
        annotations = find_annotations(data, split)
    elif not annotations.is_file():
        raise FileNotFoundError(f"no annotation file {annotations}; check the path")
    if images is None:
        assert data is not None
        images = _find_images(data, annotations)
    elif not images.is_dir():
        raise FileNotFoundError(f"no folder of images {images}; check the path")
    return CocoPaths(annotations, images)


def find_annotations(data: Path, split: str) -> Path:
    """The annotation file of a split, in a layout that ``find_coco`` knows; its images may be missing.

    Raises:
        FileNotFoundError: If ``data`` is not there.
        ValueError: If the layout is not known, or leaves two files to choose from; says what was looked for.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {data}; check the path")
    found: dict[str, Path] = {}
    for path in sorted(data.glob("annotations/*.json")):
        name = path.stem.removeprefix("instances_")
        if name != path.stem or name == split or _without_year(name).lower() in SPLITS:
            if path.stem != name or name not in found:  # instances_train.json before train.json
                found[name] = path
    for path in sorted(data.glob(f"*/{ROBOFLOW}")):
        found.setdefault(path.parent.name, path)
    if split in found:
        return found[split]
    kinds: dict[str, list[str]] = {}
    for name in found:
        kinds.setdefault(_without_year(name), []).append(name)
    kind = match_split(split, list(kinds))
    if kind is None:
        there = some(str(path.relative_to(data)) for path in found.values()) or "none"
        raise ValueError(
            f"{data}: no annotations of the split {split!r}; looked for annotations/instances_{split}*.json, "
            f"annotations/{split}*.json and {split}/{ROBOFLOW}, and found {there}; give the split its name there, or "
            "name the annotation file and the folder of images"
        )
    if len(kinds[kind]) > 1:
        raise ValueError(f"{data}: the split {split!r} may be any of {some(kinds[kind])}; name one of them")
    return found[kinds[kind][0]]


def _find_images(data: Path, annotations: Path) -> Path:
    if annotations.name == ROBOFLOW:
        return annotations.parent
    name = annotations.stem.removeprefix("instances_")
    names = dict.fromkeys((name, _without_year(name)))
    roots = dict.fromkeys((data, annotations.parent.parent, annotations.parent))
    places = [root / below / name for root in roots for below in ("", "images") for name in names]
    for place in [*places, data / "images"]:
        if place.is_dir():
            return place
    raise ValueError(
        f"{data}: no folder with the images of {annotations.name}; looked for {some(map(str, places), len(places))} "
        f"and {data / 'images'}; name the folder of images"
    )


def _without_year(name: str) -> str:
    return re.sub(r"\d{4}$", "", name) or name
