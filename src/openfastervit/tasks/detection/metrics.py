"""COCO's average precision of boxes and masks, by pycocotools."""

import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from openfastervit.data.coco_annotations import Annotations, read_annotations
from openfastervit.data.coco_masks import require_pycocotools
from openfastervit.tasks.detection.results import Result, box_of, check_results, read_results, some_ids, to_results

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

Kind = Literal["bbox", "segm"]

# Figures by name: their places in COCOeval.stats.
_STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar100": 8}


class ClassAP(NamedTuple):
    """How one class fares: AP over IoU 0.50 to 0.95, 0 to 1; NaN where none of its objects is on the images."""

    name: str
    box_ap: float
    mask_ap: float
    """NaN where masks are not scored."""


class CocoMetrics:
    """Detections over an evaluation, scored against an annotation file by pycocotools' ``COCOeval``.

    Only the images that were counted are scored. Annotations that cannot be used (``read_annotations`` says which) are
    left out; crowd regions count as COCO has it: what is found in them is neither right nor wrong. Annotations are
    numbered anew, since ``COCOeval`` takes an object with the id 0 for one that was never found. Areas of detected
    masks are those of the masks, as COCO's server has it, not of their boxes.

    Can be pickled: it holds detections and file names; annotations are read when figures are asked for.

    Args:
        annotations: The json file.
        category_ids: Of the labels: that of label 1 first.
        masks: Whether to score masks as well as boxes.

    Raises:
        ValueError: If pycocotools is not installed, or a category comes twice.
    """

    def __init__(self, annotations: str | os.PathLike[str], category_ids: Sequence[int], *, masks: bool) -> None:
        require_pycocotools("average precision")
        self.annotations, self.category_ids, self.masks = Path(annotations), tuple(category_ids), masks
        if len(set(self.category_ids)) < len(self.category_ids):
            raise ValueError(f"category_ids={list(category_ids)}: one comes twice")
        self.results: list[Result] = []
        """All detections, as ``write_results`` takes them."""
        self._images: dict[int, None] = {}  # in their order, and found quickly
        self._truth: Annotations | None = None
        self._evaluations: dict[Kind, COCOeval] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_truth": None, "_evaluations": {}}

    @property
    def image_ids(self) -> list[int]:
        """Images counted, also those on which nothing was found."""
        return list(self._images)

    def update(self, outputs: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch.

        Args:
            outputs: One an image, as detectors give them; ``masks`` are needed if they are scored, else passed over.
            targets: One an image, with its ``image_id``.

        Raises:
            ValueError: If masks are missing, a label has no category, or the lists are not of one length.
        """
        image_ids = [int(target["image_id"]) for target in targets]
        if len(outputs) != len(targets):
            raise ValueError(f"{len(outputs)} outputs, but {len(targets)} targets; give one of each for every image")
        results: list[Result] = []
        for output, image_id in zip(outputs, image_ids, strict=True):
            if self.masks and "masks" not in output and len(output["boxes"]):
                raise ValueError(f"masks are to be scored, but there are none for image {image_id}; score boxes alone")
            wanted = output if self.masks else {name: value for name, value in output.items() if name != "masks"}
            results += to_results(wanted, image_id, self.category_ids)
        self._add(image_ids, results)

    def merge(self, other: "CocoMetrics") -> None:
        """Add what another process counted, of other images.

        Raises:
            ValueError: If it counts something else, or an image that is counted here.
        """
        mine, others = ((m.annotations, m.category_ids, m.masks) for m in (self, other))
        if mine != others:
            raise ValueError(f"metrics of {others[0]} cannot be added to metrics of {mine[0]} with other settings")
        self._add(other.image_ids, other.results)

    def _add(self, image_ids: Sequence[int], results: Sequence[Result]) -> None:
        for image_id in image_ids:
            if image_id in self._images:
                raise ValueError(f"image {image_id} comes twice in this evaluation; count each image once")
            self._images[image_id] = None
        self.results += results
        self._evaluations = {}

    def compute(self) -> dict[str, float]:
        """The figures of all images.

        Returns:
            ``box_ap``: the mean over classes and IoU of 0.50 to 0.95 of average precision, 0 to 1; ``box_ap50`` and
            ``box_ap75`` at one IoU; ``box_ap_small``, ``box_ap_medium``, ``box_ap_large`` of objects below 32 x 32
            pixels, up to 96 x 96, and above; ``box_ar100``: mean recall with at most 100 detections of a class an
            image. With masks the same as ``mask_ap`` and so on. A figure is NaN where there is no such object (where
            pycocotools says -1). ``images``: their number.

        Raises:
            ValueError: If no image was counted, or one is not in the annotations.
            OSError: If the annotations cannot be read.
        """
        figures: dict[str, float] = {}
        for name, kind in self._kinds().items():
            stats = self._evaluate(kind).stats
            figures |= {f"{name}_{figure}": _or_nan(stats[place]) for figure, place in _STATS.items()}
        return {**figures, "images": len(self._images)}

    def per_class(self) -> list[ClassAP]:
        """Average precision of each class, in the order of the labels."""
        columns = {name: self._by_category(kind) for name, kind in self._kinds().items()}
        names = {category["id"]: category["name"] for category in self._read().categories}
        return [
            ClassAP(
                names.get(number, f"category {number}"), *(_at(columns.get(name), number) for name in ("box", "mask"))
            )
            for number in self.category_ids
        ]

    def _kinds(self) -> dict[str, Kind]:
        return {"box": "bbox", "mask": "segm"} if self.masks else {"box": "bbox"}

    def _by_category(self, kind: Kind) -> dict[int, float]:
        evaluation = self._evaluate(kind)
        # (IoU, recall, class, area, most detections): all areas, 100 detections.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        found: dict[int, float] = {}
        for place, number in enumerate(evaluation.params.catIds):
            valid = precision[:, :, place][precision[:, :, place] > -1]
            found[int(number)] = float(valid.mean()) if valid.size else math.nan
        return found

    def _read(self) -> Annotations:
        if self._truth is None:
            self._truth = read_annotations(self.annotations, masks=self.masks)
        return self._truth

    def _evaluate(self, kind: Kind) -> "COCOeval":
        if kind not in self._evaluations:
            if not self._images:
                raise ValueError("no image was evaluated; check that the data has images that can be read")
            truth = self._read()
            unknown = self._images.keys() - {image["id"] for image in truth.images}
            if unknown:
                raise ValueError(f"{self.annotations} has no image with the id {some_ids(sorted(unknown))}")
            self._evaluations[kind] = _evaluate(truth, self.results, kind, self.image_ids, self.category_ids)
        return self._evaluations[kind]


def evaluate_results(
    annotations: str | os.PathLike[str],
    results: Sequence[Result] | str | os.PathLike[str],
    masks: bool | None = None,
) -> CocoMetrics:
    """Score predictions over all images of an annotation file, those without predictions too.

    Args:
        annotations: The json file. What in it cannot be used is told in a warning.
        results: Predictions in COCO's format, or the json file of them.
        masks: Whether to score masks too; by default if all predictions have one.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file cannot be used; names the first prediction that is wrong.
    """
    require_pycocotools("average precision")
    where = "results"
    if isinstance(results, str | os.PathLike):
        where, results = str(results), read_results(results)
    if masks is None:
        masks = bool(results) and all("segmentation" in result for result in results)
    truth = read_annotations(annotations, masks=masks)
    truth.warn()
    check_results(results, truth, masks=masks, where=where)
    metrics = CocoMetrics(annotations, [category["id"] for category in truth.categories], masks=masks)
    metrics._truth = truth
    metrics._add([image["id"] for image in truth.images], results)
    return metrics


def _evaluate(
    truth: Annotations, results: Sequence[Result], kind: Kind, image_ids: Sequence[int], category_ids: Sequence[int]
) -> "COCOeval":
    """COCOeval after its three steps, without its words."""
    from pycocotools import mask
    from pycocotools.cocoeval import COCOeval

    # What COCO.loadRes does, which fails without detections, and takes a mask's area from its box.
    detections = [
        {
            **result,
            "id": number,
            "iscrowd": 0,
            "bbox": (box := box_of(result)),
            "area": float(mask.area(result["segmentation"])) if kind == "segm" else box[2] * box[3],
        }
        for number, result in enumerate(results, start=1)
    ]
    objects = [{**annotation, "id": number} for number, annotation in enumerate(truth.annotations, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(truth, objects), _indexed(truth, detections), iouType=kind)
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.params.catIds = sorted(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _indexed(truth: Annotations, annotations: list[dict[str, Any]]) -> "COCO":
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": truth.images, "categories": truth.categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _or_nan(value: float | np.floating[Any]) -> float:
    return math.nan if value == -1 else float(value)


def _at(column: Mapping[int, float] | None, number: int) -> float:
    return math.nan if column is None else column[number]
