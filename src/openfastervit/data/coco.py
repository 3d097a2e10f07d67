"""Images with boxes, labels and masks in COCO's format, by position."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from openfastervit.data.coco_annotations import Annotations, Problem, image_ids, read_annotations
from openfastervit.data.coco_layout import CocoPaths, find_annotations, find_coco
from openfastervit.data.coco_masks import decode_mask, require_pycocotools
from openfastervit.data.images import ImageError, open_image
from openfastervit.data.labelled import check_classes, some
from openfastervit.data.packed import PackedStrings

__all__ = ["CocoImages", "CocoPaths", "Problem", "find_annotations", "find_coco", "image_ids"]

_Turn = Image.Transpose
# What takes a turned image back: the reverse of Pillow's exif_transpose. Turns that keep the size are not told by it.
_TURN_BACK = {5: _Turn.TRANSPOSE, 6: _Turn.ROTATE_90, 7: _Turn.TRANSVERSE, 8: _Turn.ROTATE_270}


class CocoImages:
    """Images by position, and what is on them: boxes, labels and, if asked for, masks.

    Annotations that cannot be used are left out, and told in one warning and in ``problems``; which those are, see
    ``read_annotations``. Boxes are clipped to the image. Masks are kept as the file writes them until they are asked
    for. As torchvision's and detectron2's training do, crowd regions are left out, since a network could not learn
    single objects from them; evaluation reads the file again, where they count as COCO wants it.

    Can be pickled, and read by several processes at once: it goes to the workers of a loader.

    Args:
        annotations: The json file.
        images: The folder that its file names start from.
        masks: Whether targets have masks, and annotations need them.
        classes: A fixed order of classes, matched by name; the file may have fewer, not others, unless those have no
            annotations. By default the file's, by ascending id.
        category_ids: Of those classes, where the file may lack some; where it has them, its ids must be these.
        crowds: Keep crowd regions, marked by ``iscrowd``.
        empty: Keep images without annotations: a network learns from them where nothing is.

    Raises:
        FileNotFoundError: If the file or folder is not there.
        ValueError: If the file cannot be used, its classes are not those wanted, or no image is left.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        masks: bool,
        classes: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
        crowds: bool = False,
        empty: bool = True,
    ) -> None:
        if masks:
            require_pycocotools("reading masks")
        self.annotations, self.images, self.masks = Path(annotations), Path(images), masks
        if not self.images.is_dir():
            raise FileNotFoundError(f"no folder of images {images}; check the path")
        read = read_annotations(annotations, masks=masks)
        read.warn()
        self.problems: tuple[Problem, ...] = read.problems
        """Annotations that are left out since they cannot be used."""
        self.classes, self.category_ids = _order_categories(read, classes, category_ids)
        """Names and ids of the classes: the one with label 1 first."""
        entries = [entry for entry in read.annotations if crowds or not entry["iscrowd"]]
        kept = read.images
        if not empty:
            filled = {entry["image_id"] for entry in entries}
            kept = [image for image in kept if image["id"] in filled]
            if not kept:
                raise ValueError(f"{annotations}: no image has an annotation that can be used; nothing is left")
        self.image_ids: NDArray[np.int64] = np.array([image["id"] for image in kept], dtype=np.int64)
        """In the order of the images."""
        self.sizes: NDArray[np.int32] = np.array([(image["height"], image["width"]) for image in kept], dtype=np.int32)
        """``(len(self), 2)``: height and width of each image, without opening any."""
        self._names = PackedStrings(image["file_name"] for image in kept)
        self._index(entries)

    def _index(self, entries: list[dict[str, Any]]) -> None:
        """Annotations by image, in arrays: as objects those of COCO would take gigabytes, in every worker."""
        places = {number: place for place, number in enumerate(self.image_ids.tolist())}
        order = np.array([places[entry["image_id"]] for entry in entries], dtype=np.int64)
        by_image = np.argsort(order, kind="stable")
        self._ends = np.cumsum(np.bincount(order, minlength=len(places)))
        entries = [entries[place] for place in by_image]
        labels = {category: label for label, category in enumerate(self.category_ids, start=1)}
        self._labels = np.array([labels[entry["category_id"]] for entry in entries], dtype=np.int64)
        self._areas = np.array([entry["area"] for entry in entries], dtype=np.float32)
        self._crowds = np.array([entry["iscrowd"] for entry in entries], dtype=np.int64)
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        heights, widths = self.sizes[order[by_image]].T
        self._boxes = np.clip(boxes, 0, np.stack([widths, heights, widths, heights], axis=1)).astype(np.float32)
        self._masks = PackedStrings(
            json.dumps(entry["segmentation"], separators=(",", ":")) if self.masks else "" for entry in entries
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """The file name of an image, as the annotations have it."""
        return self._names[index]

    def open(self, index: int) -> Image.Image:
        """The image, decoded, RGB, of the size that its annotations are for.

        Raises:
            ImageError: If it cannot be read, or has another size than the annotations say.
        """
        path = self.images / self.name(index)
        image = open_image(path)
        height, width = self.sizes[index].tolist()
        if image.size != (width, height) and image.size == (height, width):
            # Annotated as it is stored, without the camera's orientation.
            with Image.open(path) as stored:
                turn = _TURN_BACK.get(stored.getexif().get(ExifTags.Base.Orientation, 1))
            image = image if turn is None else image.transpose(turn)
        if image.size != (width, height):
            raise ImageError(
                f"it is {image.width} pixels wide and {image.height} high, but {width} and {height} by its annotations"
            )
        return image

    def target(self, index: int) -> dict[str, Any]:
        """What is on an image.

        Returns:
            ``image_id``, a whole number; and, for N objects that may be none, ``boxes`` ``(N, 4)`` float32, left, top,
            right and bottom in pixels; ``labels`` ``(N,)`` int64, from 1; ``area`` ``(N,)`` float32, in pixels, that
            of the mask as the file has it; ``iscrowd`` ``(N,)`` int64. With masks also ``masks`` ``(N, H, W)`` uint8.
        """
        found = self.about(index)
        if self.masks:
            height, width = self.sizes[index].tolist()
            masks = np.zeros((len(found["labels"]), height, width), dtype=np.uint8)
            for place, text in enumerate(self._masks[self._part(index)]):
                masks[place] = decode_mask(json.loads(text), height, width)
            found["masks"] = torch.from_numpy(masks)
        return found

    def about(self, index: int) -> dict[str, Any]:
        """The target without masks, which take time to decode."""
        part = self._part(index)
        return {
            "image_id": int(self.image_ids[index]),
            "boxes": torch.from_numpy(self._boxes[part].copy()),
            "labels": torch.from_numpy(self._labels[part].copy()),
            "area": torch.from_numpy(self._areas[part].copy()),
            "iscrowd": torch.from_numpy(self._crowds[part].copy()),
        }

    def _part(self, index: int) -> slice:
        index = range(len(self))[index]
        return slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))


def _order_categories(
    read: Annotations, classes: Sequence[str] | None, category_ids: Sequence[int] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the classes, in the order of their labels."""
    names = {category["id"]: category["name"] for category in read.categories}
    if category_ids is not None and len(set(category_ids)) < len(category_ids):
        raise ValueError(f"category_ids={list(category_ids)}: one comes twice")
    if classes is None:
        wanted = list(names) if category_ids is None else list(category_ids)
        unknown = [number for number in wanted if number not in names]
        if unknown or not wanted:
            raise ValueError(f"category_ids={wanted}: {unknown or 'none'} of the categories of {read.path}")
        classes = [names[number] for number in wanted]
    else:
        check_classes(classes, "classes")
        ids = {name: number for number, name in names.items()}
        if category_ids is None:
            missing = [name for name in classes if name not in ids]
            if missing:
                raise ValueError(
                    f"classes: {some(missing)} not among the {len(ids)} categories of {read.path} ({some(ids)}); "
                    "give category_ids as well, or add it there"
                )
            category_ids = [ids[name] for name in classes]
        if len(category_ids) != len(classes):
            raise ValueError(f"{len(classes)} classes need as many category_ids, not {len(category_ids)}")
        for name, number in zip(classes, category_ids, strict=True):
            if ids.get(name, number) != number:
                raise ValueError(
                    f"{read.path}: category {name!r} has the id {ids[name]}, but {number} was expected, as where the "
                    "classes come from; number the categories alike"
                )
        wanted = list(category_ids)
    used = {entry["category_id"] for entry in read.annotations}
    others = [name for number, name in names.items() if number in used and name not in classes]
    if others:
        raise ValueError(
            f"{read.path}: category {others[0]!r} is not among the {len(classes)} known ones ({some(classes)}); "
            "rename it, leave it out, or train with it"
        )
    return tuple(classes), tuple(wanted)
