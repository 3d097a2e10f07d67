"""Which classes the label maps of a folder have: by what is said, by data sets that are known, by the values."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from openfastervit.data.images import ImageError
from openfastervit.data.label_maps import IGNORE, read_label_map
from openfastervit.data.labelled import check_classes
from openfastervit.data.semantic_layouts import paths_by_stem

CAMVID = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "cyclist",
)
"""CamVid's classes, in SegNet's order; the next value, 11, stands for none of them."""

_CAMVID_NAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+")
_ADE20K_NAME = re.compile(r"ADE_\w+_\d+")
_ADE20K_CLASSES = 150
_ADE20K_TABLE = "objectInfo150.txt"
_UNNAMED = "class "


@dataclass(frozen=True)
class MapClasses:
    """What the values in label maps stand for."""

    names: tuple[str, ...] | None = None
    """Of the classes, where the data names them."""
    count: int | None = None
    """How many classes there are, where that is known."""
    ignore_label: int | None = None
    """A value that is ignored."""
    reduce_zero_label: bool = False
    """Whether 0 is ignored, and 1 is the first class."""
    prefix: str = ""
    """Of the numbers that stand for names."""


def describe_classes(
    folder: Path,
    splits: Mapping[str, tuple[str, str]],
    pairs: Sequence[tuple[str, str]],
    wanted: Sequence[str] | None,
    num_classes: int | None,
    reduce_zero_label: bool | None,
) -> MapClasses:
    """The classes of a folder, as far as is known without reading label maps.

    Args:
        folder: The data.
        splits: As ``find_splits`` gives them.
        pairs: As ``pair_files`` gives them, of one split.
        wanted: Names of classes that a network has. Where they are but numbers, they say how many there are, and stand
            for the classes of the data in their order.
        num_classes: How many there are.
        reduce_zero_label: Whether 0 is ignored, where that is known.

    Raises:
        ValueError: If what is said contradicts the data, or is not enough to tell what 0 means.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    numbered = False
    if wanted is not None:
        check_classes(wanted, "classes")
        numbered = _numbered(wanted)
        if numbered and num_classes is None:
            num_classes = len(wanted)
    names = _read_names(folder / "classes.txt")
    if names is not None and num_classes not in (None, len(names)):
        raise ValueError(f"{num_classes} classes are asked for, but {folder / 'classes.txt'} names {len(names)}")
    count = num_classes if names is None else len(names)
    stems = [Path(image).stem for image, _ in pairs]
    found = MapClasses()
    if _is_camvid(stems, count) and not reduce_zero_label:
        found = MapClasses(CAMVID, len(CAMVID), ignore_label=len(CAMVID))
    elif _is_ade20k(folder, splits, stems, len(wanted) if count is None and wanted else count, reduce_zero_label):
        table = folder / _ADE20K_TABLE
        known = _read_object_info(table) if table.is_file() else None
        found = MapClasses(known, _ADE20K_CLASSES, reduce_zero_label=True, prefix=_UNNAMED)
    names = None if numbered else names or found.names
    count = found.count if count is None else count
    if names is None and wanted is not None:
        if count not in (None, len(wanted)):
            raise ValueError(f"classes: {len(wanted)} names, but {folder} has {count} classes; name each of them")
        count = len(wanted)
    reduce = found.reduce_zero_label if reduce_zero_label is None else reduce_zero_label
    return replace(found, names=names, count=count, reduce_zero_label=reduce)


def _is_camvid(stems: Sequence[str], count: int | None) -> bool:
    return count in (None, len(CAMVID)) and all(map(_CAMVID_NAME.match, stems))


def _is_ade20k(
    folder: Path,
    splits: Mapping[str, tuple[str, str]],
    stems: Sequence[str],
    count: int | None,
    reduce_zero_label: bool | None,
) -> bool:
    layout = all(pair == (f"images/{name}", f"annotations/{name}") for name, pair in splits.items())
    if not layout or not set(splits) <= {"training", "validation"} or reduce_zero_label is False:
        return False
    if count is not None:
        return count == _ADE20K_CLASSES
    if (folder / _ADE20K_TABLE).is_file() or all(map(_ADE20K_NAME.match, stems)):
        return True
    if reduce_zero_label is None:
        raise ValueError(
            f"{folder} is laid out as ADE20K, whose label maps have 0 for ignored pixels and 1 for the first class, "
            f"but neither {_ADE20K_TABLE} nor the names of its files say that it is; give num_classes: "
            f"{_ADE20K_CLASSES} for ADE20K, another number for other data, in which 0 is the first class"
        )
    return False


def _numbered(classes: Sequence[str]) -> bool:
    """Whether they are the numbers that stand for names where there are none."""
    return any(all(name == f"{prefix}{place}" for place, name in enumerate(classes)) for prefix in ("", _UNNAMED))


def _read_names(path: Path) -> tuple[str, ...] | None:
    """The names in a file, one a line; None if there is no such file."""
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    check_classes(names, str(path))
    return names


def _read_object_info(path: Path) -> tuple[str, ...]:
    """ADE20K's names: the last column of a table with a header, the first of the words that mean the same."""
    rows = [line.split("\t") for line in path.read_text("utf-8", errors="replace").splitlines()[1:] if line.strip()]
    names = tuple(re.split("[,;]", row[-1])[0].strip() for row in rows)
    if len(names) != _ADE20K_CLASSES:
        raise ValueError(f"{path} names {len(names)} classes, ADE20K has {_ADE20K_CLASSES}; use the data's own file")
    check_classes(names, str(path))
    return names


def count_classes(folder: Path, labels: Sequence[str], ignore_label: int | None, reduce_zero_label: bool) -> int:
    """How many classes there are, by the largest value in all label maps.

    What cannot be read is passed over: whoever asks for it is told.

    Args:
        folder: The data.
        labels: Folders of label maps below it.
        ignore_label: A value that is ignored, besides 255.
        reduce_zero_label: Whether 0 is too.

    Raises:
        ValueError: If there is no class, or more than labels of 8 bits can tell apart.
    """
    first = int(reduce_zero_label)
    ignored = {IGNORE, IGNORE if ignore_label is None else ignore_label}
    largest, where = -1, ""
    for path in (path for below in labels for path in paths_by_stem(folder, below).values()):
        with contextlib.suppress(ImageError):
            values = np.unique(read_label_map(folder / path)).tolist()
            highest = max((value for value in values if value not in ignored), default=-1)
            if highest > largest:
                largest, where = highest, path
    if largest < first:
        raise ValueError(f"{folder}: no label map has a class in it; give num_classes, or mend the label maps")
    if largest > IGNORE:
        raise ValueError(
            f"{folder}: {where} holds the value {largest}, but there may be {IGNORE - first} classes at most; "
            f"give num_classes, or ignore_label={largest}"
        )
    return largest + 1 - first
