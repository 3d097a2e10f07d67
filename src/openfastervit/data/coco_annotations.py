"""Annotation files of COCO (json): read whole, and checked entry by entry."""

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from openfastervit.data.coco_masks import mask_problem, rings
from openfastervit.data.labelled import some

SMALLEST_SIDE = 0.01
"""Pixels. A box that is narrower has no area: when it is scaled, in single precision, its sides may fall together."""

TOLD = 3
"""Annotations of each kind of problem that a warning names."""


class Problem(NamedTuple):
    """An annotation that is left out."""

    annotation: int | None
    """Its id; None where it has none."""
    image: str
    """The image's file name, or "" where the image is unknown."""
    kind: str
    """What is wrong, in the same words for all annotations that have it."""
    reason: str
    """What is wrong with this one."""


@dataclass(frozen=True)
class Annotations:
    """What is in an annotation file and can be used."""

    path: Path
    images: list[dict[str, Any]]
    """As in the file, in its order; each has a whole ``id``, a ``file_name``, a ``height`` and a ``width``."""
    annotations: list[dict[str, Any]]
    """In the file's order, crowds too. Each has ``image_id``, ``category_id``, ``bbox`` as it was, ``iscrowd`` (0 where
    the file has none), ``area`` (that of the box where the file has none) and, if masks were asked for,
    ``segmentation`` with those of its polygons that enclose something."""
    categories: list[dict[str, Any]]
    """By ascending ``id``; each has a ``name`` of its own."""
    problems: tuple[Problem, ...]
    """Annotations that cannot be used, in the file's order."""

    def warn(self, stacklevel: int = 2) -> None:
        """One warning for all problems, if there are any."""
        if not self.problems:
            return
        kinds = Counter(problem.kind for problem in self.problems)
        told = []
        for kind, count in kinds.most_common():
            examples = [problem for problem in self.problems if problem.kind == kind][:TOLD]
            told.append(f"{count} with {kind} ({'; '.join(map(_told, examples))}{'; ...' if count > TOLD else ''})")
        total = len(self.annotations) + len(self.problems)
        warnings.warn(
            f"{self.path}: {len(self.problems)} of {total} annotations cannot be used and are left out: "
            f"{', '.join(told)}",
            stacklevel=stacklevel + 1,
        )


def read_annotations(path: str | os.PathLike[str], *, masks: bool) -> Annotations:
    """Read an annotation file.

    Left out, as ``problems``, are annotations whose image or category is not in the file; whose box is missing, not
    finite, less than 0.01 pixels wide or high, or wholly outside the image; and, with masks, those without a mask,
    with polygons of fewer than 3 points only, or with a mask that is damaged or of another size than the image. A box
    that is partly outside is no problem.

    Args:
        path: The file.
        masks: Whether masks will be needed. Else nothing is said of them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not JSON, has no images or no categories, or two of a kind have the same id.
    """
    path = Path(path)
    content = _load(path)
    images, categories = content["images"], content["categories"]
    _check_ids(images, f"{path}: images", ("file_name",))
    for image in images:
        for side in ("height", "width"):
            if not _is_whole(image.get(side)) or image[side] < 1:
                raise ValueError(
                    f"{path}: image {image['id']} ({image['file_name']}) has {side}={image.get(side)!r}; "
                    "annotations need its size in pixels"
                )
    _check_ids(categories, f"{path}: categories", ("name",))
    categories = sorted(categories, key=lambda category: category["id"])
    twice = [name for name, count in Counter(category["name"] for category in categories).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: two categories are called {twice[0]!r}; each needs a name of its own")
    by_id = {image["id"]: image for image in images}
    known = {category["id"] for category in categories}
    usable: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for annotation in content["annotations"]:
        found = _problem(annotation, by_id, known, masks)
        if found is None:
            usable.append(_completed(annotation, masks))
            continue
        entry = annotation if isinstance(annotation, dict) else {}
        number, image_id = entry.get("id"), entry.get("image_id")
        image = by_id.get(image_id, {}) if _is_whole(image_id) else {}
        problems.append(Problem(number if _is_whole(number) else None, image.get("file_name", ""), *found))
    return Annotations(path, images, usable, categories, tuple(problems))


def image_ids(paths: Sequence[Path], annotations: str | os.PathLike[str] | None = None) -> list[int]:
    """Ids for images on disk, as results in COCO's format need them.

    Args:
        paths: The images.
        annotations: A file that has them; an image is known by its name, with as many folders as ``file_name`` has.
            Without it ids are the numbers that all images are named after, as COCO's are (``000000000139.jpg``), or
            else the images' places from 1 on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be used or lacks an image, or two images would have one id.
    """
    if annotations is None:
        numbers = [int(path.stem) for path in paths if re.fullmatch("[0-9]{1,18}", path.stem)]
        return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))
    known = {image["file_name"]: image["id"] for image in read_annotations(annotations, masks=False).images}
    found: dict[int, Path] = {}
    for path in paths:
        names = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
        number = next((known[name] for name in names if name in known), None)
        if number is None:
            raise ValueError(f"{path} is none of the {len(known)} images of {annotations} ({some(known)})")
        if number in found:
            raise ValueError(f"{path} and {found[number]} are both image {number} of {annotations}; give one of them")
        found[number] = path
    return list(found)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; check the path")
    try:
        with path.open("rb") as file:
            return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give a file in COCO's format") from error


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        found = f"holds a {type(content).__name__}, not an object (predictions are a list)"
        raise ValueError(f"{path} {found}; COCO's annotations are an object with {some(keys)}")  # noqa: TRY004
    for key in keys:
        if not isinstance(content.get(key), list):
            found = f"has no list {key!r}, but {some(map(str, content)) or 'nothing'}"
            raise ValueError(f"{path} {found}; COCO's annotations are an object with {some(keys)}")  # noqa: TRY004
        if not content[key] and key != "annotations":
            raise ValueError(f"{path} has no {key}: the list is empty")
    return content


def _check_ids(entries: Sequence[Any], where: str, texts: Iterable[str]) -> None:
    """Raise ``ValueError`` unless each entry has an id of its own and those texts."""
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_whole(entry.get("id")):
            raise ValueError(f"{where}: entry {place} has no whole number as its id: {str(entry)[:80]}")
        if entry["id"] in seen:
            raise ValueError(f"{where}: the id {entry['id']} comes twice; each needs one of its own")
        seen.add(entry["id"])
        for text in texts:
            if not isinstance(entry.get(text), str) or not entry[text]:
                raise ValueError(f"{where}: the entry with id {entry['id']} has no {text}")


def _problem(annotation: Any, images: dict[int, Any], categories: set[int], masks: bool) -> tuple[str, str] | None:
    """Why an annotation cannot be used: the kind of problem, and the problem."""
    if not isinstance(annotation, dict):
        return "no fields", f"it is {str(annotation)[:60]}"
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if not _is_whole(image_id) or image_id not in images:
        return "an unknown image id", f"its image_id is {image_id!r}"
    if not _is_whole(category_id) or category_id not in categories:
        return "an unknown category id", f"its category_id is {category_id!r}"
    image = images[image_id]
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        return "no box of four numbers", f"its bbox is {str(box)[:60]}"
    if not all(map(_is_finite, box)):
        return "a box of numbers that are not finite", f"its bbox is {str(box)[:60]}"
    left, top, width, height = box
    if min(width, height) < SMALLEST_SIDE:
        return "a box without area", f"its bbox is {box}"
    inside_x = min(left + width, image["width"]) - max(left, 0)
    inside_y = min(top + height, image["height"]) - max(top, 0)
    if min(inside_x, inside_y) < SMALLEST_SIDE:
        return "a box outside the image", f"its bbox is {box}, the image {image['width']} x {image['height']}"
    return mask_problem(annotation.get("segmentation"), int(image["height"]), int(image["width"])) if masks else None


def _completed(annotation: dict[str, Any], masks: bool) -> dict[str, Any]:
    """A usable annotation, changed in place: with what pycocotools needs, and masks it can read."""
    area = annotation.get("area")
    if not _is_finite(area):
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    annotation["iscrowd"] = int(bool(annotation.get("iscrowd")))
    if masks and isinstance(annotation["segmentation"], list):
        annotation["segmentation"] = rings(annotation["segmentation"])
    return annotation


def _told(problem: Problem) -> str:
    of = f" of {problem.image}" if problem.image else ""
    return f"annotation {'without id' if problem.annotation is None else problem.annotation}{of}: {problem.reason}"


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
