"""Detections and COCO's results: what networks give, and the json lists that evaluation servers take."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from openfastervit.atomic import write_atomically
from openfastervit.data.coco_annotations import Annotations, read_json
from openfastervit.data.coco_masks import decode_mask, encode_mask, require_pycocotools, rle_problem, to_rle
from openfastervit.data.labelled import some

Result = dict[str, Any]
"""One detection: ``image_id``, ``category_id``, ``score``, ``bbox`` (left, top, width, height, in pixels) and, for
masks, ``segmentation`` (compressed RLE)."""

MASK_THRESHOLD = 0.5
"""A pixel is inside where the mask's probability is above it."""


def to_results(output: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[Result]:
    """A network's detections on an image, as COCO's results.

    Boxes are rounded to hundredths of a pixel, as COCO's own are; scores to what tells one float32 from the next, so
    that the order of detections stays. A detection whose box or score is not finite is none, and is left out.

    Args:
        output: ``boxes`` ``(N, 4)`` xyxy in pixels, ``scores`` ``(N,)``, ``labels`` ``(N,)`` from 1 and, for masks,
            ``masks`` ``(N, 1, H, W)`` probabilities.
        image_id: Of the image.
        category_ids: By label: that of label 1 first.

    Raises:
        ValueError: If there is no category for a label, or masks are there and pycocotools is not installed.
    """
    boxes = output["boxes"].detach().double().cpu()
    scores = output["scores"].detach().float().cpu()
    labels = output["labels"].detach().cpu()
    outside = labels[(labels < 1) | (labels > len(category_ids))]
    if outside.numel():
        raise ValueError(
            f"label {int(outside[0])} on image {image_id} is none of the {len(category_ids)} classes, which are 1 to "
            f"{len(category_ids)}"
        )
    masks = output.get("masks")
    if masks is not None:
        require_pycocotools("results with masks")
    rounded = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).numpy().round(2).tolist()
    kept = (boxes.isfinite().all(dim=1) & scores.isfinite()).nonzero().flatten().tolist()
    results: list[Result] = []
    for place in kept:
        result: Result = {
            "image_id": int(image_id),
            "category_id": int(category_ids[int(labels[place]) - 1]),
            "bbox": rounded[place],
            "score": float(str(scores[place].numpy())),
        }
        if masks is not None:
            result["segmentation"] = encode_mask((masks[place].squeeze(0) > MASK_THRESHOLD).cpu().numpy())
        results.append(result)
    return results


def from_results(results: Iterable[Result], category_ids: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """COCO's results as a network would give them, by image id: the reverse of ``to_results``.

    Images without results are not in it. Masks ``(N, 1, H, W)`` are 0 and 1, and there where all results of the image
    have them.

    Raises:
        ValueError: If a category is not among ``category_ids``.
    """
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    by_image: dict[int, list[Result]] = {}
    for result in results:
        if result["category_id"] not in labels:
            raise ValueError(
                f"category_id {result['category_id']} is none of the {len(labels)} known: {some_ids(labels)}"
            )
        by_image.setdefault(result["image_id"], []).append(result)
    outputs: dict[int, dict[str, Tensor]] = {}
    for image_id, found in by_image.items():
        found.sort(key=lambda result: -result["score"])
        boxes = torch.tensor([box_of(result) for result in found], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        output = {
            "boxes": boxes.float(),
            "scores": torch.tensor([result["score"] for result in found], dtype=torch.float32),
            "labels": torch.tensor([labels[result["category_id"]] for result in found]),
        }
        if all("segmentation" in result for result in found):
            rles = [result["segmentation"] for result in found]
            masks = np.stack([decode_mask(rle, *rle["size"]) for rle in rles])
            output["masks"] = torch.from_numpy(masks).unsqueeze(1).float()
        outputs[image_id] = output
    return outputs


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """Read a file of results.

    Each entry has an ``image_id``, a ``category_id``, a ``score``, and a ``bbox``, a ``segmentation`` (compressed RLE)
    or both; what else it has is kept.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no list of such entries; names the first that is wrong.
    """
    results = read_json(Path(path))
    if not isinstance(results, list):
        found = f"{path} holds a {type(results).__name__}, not a list of detections"
        raise ValueError(f'{found}; COCO\'s results are a list: [{{"image_id": 1, ...}}, ...]')  # noqa: TRY004
    for place, result in enumerate(results):
        wrong = _wrong_in(result)
        if wrong:
            raise ValueError(f"{path}: entry {place} (from 0): {wrong}")
    return results


def check_results(results: Sequence[Result], truth: Annotations, *, masks: bool, where: str = "results") -> None:
    """Raise ``ValueError`` unless results can be scored against annotations; names the first entry that cannot.

    Args:
        results: Entries as ``read_results`` takes them.
        truth: The annotations.
        masks: Whether each needs a mask.
        where: What the results are called.
    """
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in truth.images}
    categories = [category["id"] for category in truth.categories]
    known = set(categories)
    for place, result in enumerate(results):
        wrong = _wrong_in(result)
        if not wrong and result["image_id"] not in sizes:
            wrong = (
                f"image_id {result['image_id']} is none of the {len(sizes)} images of {truth.path} ({some_ids(sizes)})"
            )
        elif not wrong and result["category_id"] not in known:
            number = result["category_id"]
            wrong = f"category_id {number} is none of the categories of {truth.path} ({some_ids(categories)})"
        elif not wrong and masks and "segmentation" not in result:
            wrong = "it has no segmentation, which scoring masks needs; score boxes alone"
        elif not wrong and "segmentation" in result:
            problem = rle_problem(result["segmentation"], *sizes[result["image_id"]])
            wrong = problem[1] if problem else None
        if wrong:
            raise ValueError(f"{where}: entry {place} (from 0): {wrong}")


def write_results(path: str | os.PathLike[str], results: Iterable[Result]) -> None:
    """Write results as json, one detection a line. The file is whole or not there.

    Raises:
        ValueError: If a number is not finite.
        OSError: If it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        separator = b"[\n"
        for result in results:
            file.write(separator + json.dumps(result, allow_nan=False).encode())
            separator = b",\n"
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")

    write_atomically(path, write)


def annotations_as_results(truth: Annotations, *, masks: bool) -> list[Result]:
    """The annotations themselves as predictions, with a score of 1; crowd regions with one of 0.5.

    Scored against the same annotations their average precision is 1. What is found in a crowd region counts for
    nothing; but the region itself, as a detection, may overlap an object by more than the threshold and take its place.
    That object's detection then takes another's, and the last one is left over. So regions come after all objects.
    """
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in truth.images}
    results: list[Result] = []
    for annotation in truth.annotations:
        result: Result = {name: annotation[name] for name in ("image_id", "category_id", "bbox")}
        result["score"] = 0.5 if annotation["iscrowd"] else 1.0
        if masks:
            result["segmentation"] = to_rle(annotation["segmentation"], *sizes[annotation["image_id"]])
        results.append(result)
    return results


def box_of(result: Result) -> list[float]:
    """Left, top, width, height; of the mask where there is no box."""
    box: list[float] | None = result.get("bbox")
    if box is not None:
        return box
    from pycocotools import mask

    return [float(value) for value in mask.toBbox(result["segmentation"])]


def some_ids(ids: Iterable[int]) -> str:
    """A few of many ids, for an error."""
    return some(map(str, ids))


def _wrong_in(result: Any) -> str | None:
    """What makes an entry no detection, in itself."""
    if not isinstance(result, dict):
        return f"it is {str(result)[:60]}, not an object"
    for name in ("image_id", "category_id"):
        if not isinstance(result.get(name), int) or isinstance(result[name], bool):
            return f"its {name} is {result.get(name)!r}, not a whole number"
    if not _are_finite([result.get("score")]):
        return f"its score is {result.get('score')!r}, not a finite number"
    if "bbox" not in result and "segmentation" not in result:
        return "it has neither bbox nor segmentation"
    box = result.get("bbox", [0, 0, 0, 0])
    if not isinstance(box, list) or len(box) != 4 or not _are_finite(box):
        return f"its bbox is {str(box)[:60]}, not four finite numbers"
    if min(box[2:]) < 0:
        return f"its bbox is {box}, with a negative width or height; it is left, top, width, height"
    if "segmentation" not in result:
        return None
    rle = result["segmentation"]
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not isinstance(rle.get("counts"), str):
        return "its segmentation is no compressed RLE: {'size': [height, width], 'counts': a string}"
    if not all(isinstance(side, int) and side > 0 for side in size):
        return f"its segmentation has the size {size}"
    problem = rle_problem(rle, *size)
    return problem[1] if problem else None


def _are_finite(values: Sequence[Any]) -> bool:
    try:
        return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    except OverflowError:  # a whole number beyond any float
        return False
