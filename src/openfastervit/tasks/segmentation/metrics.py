"""How good a segmentation is: intersection over union and accuracy, over all pixels and class by class."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openfastervit.data.label_maps import IGNORE

_TOGETHER = 16
"""Classes whose scores are enlarged at once: all 150 of ADE20K would take 600 bytes a pixel."""


class ClassFigures(NamedTuple):
    """How one class fares. What is undefined, such as the accuracy of a class without pixels, is NaN."""

    name: str
    iou: float
    """0 to 1: of the pixels that are of the class or predicted as it, the share that is both."""
    accuracy: float
    """0 to 1: of the pixels that are of the class, the share that is predicted as it."""
    pixels: int
    """That are of the class."""


class SegmentationMetrics:
    """Counts over an evaluation; merging two of them gives the metrics of both sets of images.

    One confusion matrix is summed over all pixels of all images, and figures follow from it, as in the challenges of
    PASCAL VOC and ADE20K. Pixels whose label is 255 do not count. A pixel without a prediction (its scores are NaN, or
    255 is predicted) counts as wrong.

    Args:
        classes: Names of the classes in the order of the scores, or their number.

    Raises:
        ValueError: If there are no classes, or more than 255.
    """

    def __init__(self, classes: int | Sequence[str]) -> None:
        self.classes = tuple(map(str, range(classes)) if isinstance(classes, int) else classes)
        if not 1 <= len(self.classes) <= IGNORE:
            raise ValueError(f"classes={classes!r}: there must be 1 to {IGNORE} classes")
        self._sums = self._zeros()

    @torch.inference_mode(False)  # counts go on after an evaluation that began in this mode
    def _zeros(self) -> dict[str, Tensor]:
        count = len(self.classes)
        return {
            # Pixels by true class and predicted class; the last column is of those without a prediction.
            "confusion": torch.zeros(count, count + 1, dtype=torch.int64),
            "images": torch.zeros((), dtype=torch.int64),
        }

    @torch.no_grad()
    def update(
        self, outputs: Tensor | Iterable[Tensor], targets: Tensor | Iterable[Tensor | Mapping[str, Any]]
    ) -> None:
        """Count a batch: lists, or tensors whose first dimension is that of the images.

        Args:
            outputs: Of each image either scores ``(K, h, w)``, of a floating type, which are enlarged to the size of
                its labels (bilinear, as the field does) before the highest is taken, the first of equal ones; or
                predicted classes ``(H, W)``, whole numbers.
            targets: Of each image labels ``(H, W)``, whole numbers from 0 to K - 1, or 255 where they do not count; or
                a dictionary with those as "labels".

        Raises:
            ValueError: If shapes, types or values are not so.
        """
        counts = self._zeros()
        for output, target in zip(outputs, targets, strict=True):
            labels = target["labels"] if isinstance(target, Mapping) else target
            counts["confusion"] += self._confusion(output.detach(), labels.detach()).cpu()
            counts["images"] += 1
        for name, value in counts.items():  # all of a batch or none of it
            self._sums[name] += value

    def _confusion(self, output: Tensor, labels: Tensor) -> Tensor:
        """``(K, K + 1)`` of one image."""
        count = len(self.classes)
        self._check(labels, "labels")
        if output.is_floating_point():
            if output.ndim != 3 or len(output) != count:
                raise ValueError(f"scores of shape {list(output.shape)} are not ({count}, h, w)")
            predicted = predicted_labels(output, (labels.shape[0], labels.shape[1]))
        else:
            self._check(output, "predicted classes")
            if output.shape != labels.shape:
                raise ValueError(
                    f"predicted classes of shape {list(output.shape)} do not fit labels of {list(labels.shape)}"
                )
            predicted = output
        labels = labels.to(predicted.device).long()
        valid = labels != IGNORE
        predicted = predicted.long()[valid].clamp(max=count)  # none: the last column
        places = labels[valid] * (count + 1) + predicted
        return torch.bincount(places, minlength=count * (count + 1)).view(count, count + 1)

    def _check(self, labels: Tensor, what: str) -> None:
        integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if labels.ndim != 2 or not integral:
            raise ValueError(
                f"{what} of shape {list(labels.shape)} and type {labels.dtype} are not (H, W) whole numbers"
            )
        outside = labels[((labels < 0) | (labels >= len(self.classes))) & (labels != IGNORE)]
        if outside.numel():
            raise ValueError(
                f"{what}: {int(outside[0])} is none of the {len(self.classes)} classes, which are 0 to "
                f"{len(self.classes) - 1}, nor {IGNORE} for none"
            )

    def merge(self, other: "SegmentationMetrics") -> None:
        """Add what another has counted, of other images.

        Raises:
            ValueError: If it counts other classes.
        """
        if other.classes != self.classes:
            raise ValueError(
                f"metrics of {len(other.classes)} classes cannot be added to metrics of {len(self.classes)}: "
                "the classes are not the same"
            )
        for name, value in other._sums.items():
            self._sums[name] += value

    def state(self) -> dict[str, Tensor]:
        """All counts, as new tensors on the CPU; summed over processes they are the state of all their images."""
        return {name: value.clone() for name, value in self._sums.items()}

    @torch.inference_mode(False)
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of metrics with as many classes.

        Raises:
            ValueError: If it is another's.
        """
        zeros = self._zeros()
        if state.keys() != zeros.keys():
            raise ValueError(f"a state of {', '.join(sorted(state))} is not one of these metrics: {', '.join(zeros)}")
        for name, zero in zeros.items():
            if state[name].shape != zero.shape:
                raise ValueError(
                    f"the state's {name} has shape {list(state[name].shape)}, not {list(zero.shape)}: "
                    "it is of other classes"
                )
        self._sums = {name: state[name].detach().to("cpu", zero.dtype, copy=True) for name, zero in zeros.items()}

    @property
    def images(self) -> int:
        """Images counted."""
        return int(self._sums["images"])

    @property
    def confusion(self) -> Tensor:
        """``(K, K)`` int64: how many pixels of the class of a row are predicted as that of a column."""
        return self._sums["confusion"][:, :-1].clone()

    @property
    def unpredicted(self) -> int:
        """Pixels that have a label and no prediction, all counted as wrong."""
        return int(self._sums["confusion"][:, -1].sum())

    def compute(self) -> dict[str, float]:
        """The figures of all images.

        Returns:
            ``miou``: intersection over union, 0 to 1, the mean of the classes that occur in labels or predictions.
            ``mean_accuracy``: the share of a class's pixels that are predicted as it, 0 to 1, the mean of the classes
            that occur in labels. ``pixel_accuracy``: the share of all pixels that are predicted rightly, 0 to 1.
            ``images``: their number. Without a pixel that has a label the first three are NaN.

        Raises:
            ValueError: If there are no images.
        """
        if self.images == 0:
            raise ValueError("no image was evaluated; check that the data has images that can be read")
        rows = self.per_class()
        confusion = self._sums["confusion"]
        return {
            "miou": _mean(row.iou for row in rows),
            "mean_accuracy": _mean(row.accuracy for row in rows),
            "pixel_accuracy": _share(int(confusion.diagonal().sum()), int(confusion.sum())),
            "images": self.images,
        }

    def per_class(self) -> list[ClassFigures]:
        """The figures of each class, in the order of the scores."""
        confusion = self._sums["confusion"]
        columns = (confusion.diagonal(), confusion.sum(dim=1), confusion[:, :-1].sum(dim=0))
        return [
            ClassFigures(
                name,
                iou=_share(both, pixels + predicted - both),
                accuracy=_share(both, pixels),
                pixels=pixels,
            )
            for name, both, pixels, predicted in zip(self.classes, *(c.tolist() for c in columns), strict=True)
        ]


@torch.no_grad()
def predicted_labels(scores: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The class with the highest score of each pixel, the first of equal ones; 255 where a score is NaN.

    Scores are enlarged a few classes at a time, so that no more than those take memory at the full size.

    Args:
        scores: ``(K, h, w)``, of a floating type.
        size: Height and width to which scores are scaled before (bilinear); their own by default.

    Returns:
        ``(H, W)`` int64.
    """
    size = (scores.shape[-2], scores.shape[-1]) if size is None else size
    best = torch.full(size, -math.inf, dtype=torch.float32, device=scores.device)
    if scores.dtype == torch.float64:
        best = best.double()
    winner = torch.zeros(size, dtype=torch.int64, device=scores.device)
    undefined = torch.zeros(size, dtype=torch.bool, device=scores.device)
    for start in range(0, len(scores), _TOGETHER):
        part = scores[start : start + _TOGETHER].to(best.dtype)
        if part.shape[-2:] != size:
            part = F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]
        value, place = part.max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, place + start, winner)
        undefined |= value.isnan()
    return winner.masked_fill(undefined, IGNORE)


def _mean(values: Iterable[float]) -> float:
    """Of those that are defined."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
