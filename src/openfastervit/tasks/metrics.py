"""How good a classifier is: loss, top-1, top-5, calibration, and the classes one by one."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CONFUSION_CLASSES = 2000
"""Most classes for which a confusion matrix is kept: its size is their square, 3.8 GB for ImageNet-21K."""


class ClassFigures(NamedTuple):
    """How one class fares. What is undefined, such as the top-1 of a class without images, is NaN."""

    name: str
    images: int
    top1: float
    """Percent of the class's images."""
    top5: float
    """Percent of the class's images."""
    precision: float
    """0 to 1: share of the images predicted as this class that are of it."""
    recall: float
    """0 to 1: share of the class's images that are predicted as it."""
    f1: float
    """0 to 1: the harmonic mean of both."""


class ConfidenceBin(NamedTuple):
    """Images whose predicted class has a probability above ``lower``, at most ``upper``; NaN where there are none."""

    lower: float
    upper: float
    images: int
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    """Share predicted rightly, 0 to 1."""


class ClassificationMetrics:
    """Counts over an evaluation; merging two of them gives the metrics of both sets of images.

    Among equal logits the first class ranks first, so that the figures do not depend on the device. An image whose
    logits have no softmax (NaN, infinity) counts as wrong and has no predicted class: it makes the loss and the
    calibration error NaN and is missing in the confusion matrix.

    Args:
        classes: Names of the classes in the order of the logits, or their number.
        bins: Bins of confidence for the calibration error.

    Raises:
        ValueError: If there are no classes or no bins.
    """

    def __init__(self, classes: int | Sequence[str], bins: int = 15) -> None:
        self.classes = tuple(map(str, range(classes)) if isinstance(classes, int) else classes)
        self.bins = bins
        if not self.classes:
            raise ValueError(f"classes={classes!r}: a classifier has at least one class")
        if bins < 1:
            raise ValueError(f"bins={bins} must be at least 1")
        self._sums = self._zeros()

    @torch.inference_mode(False)  # counts go on after an evaluation that began in this mode
    def _zeros(self) -> dict[str, Tensor]:
        count = len(self.classes)
        shapes: dict[str, tuple[int, ...]] = {
            # By true class: images, those whose label ranks first, and among the first five.
            "images": (count,),
            "top1": (count,),
            "top5": (count,),
            "predicted": (count,),  # by predicted class
            "unpredicted": (),
            "bin_images": (self.bins,),
            "bin_right": (self.bins,),
        }
        if count <= CONFUSION_CLASSES:
            shapes["confusion"] = (count, count)
        sums = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
        sums["loss"] = torch.zeros((), dtype=torch.float64)
        sums["bin_confidence"] = torch.zeros(self.bins, dtype=torch.float64)
        return sums

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: ``(B, K)``, of any floating type, on any device.
            labels: ``(B,)``, whole numbers from 0 to K - 1.

        Raises:
            ValueError: If shapes, types or labels are not so.
        """
        labels = self._checked(logits, labels)
        logits = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
        target = labels.to(logits.device).unsqueeze(1)
        log_probabilities = logits.log_softmax(dim=1)
        own = logits.gather(1, target)
        earlier = torch.arange(len(self.classes), device=logits.device) < target
        rank = ((logits > own) | ((logits == own) & earlier)).sum(dim=1).cpu()
        loss = -log_probabilities.gather(1, target).squeeze(1).cpu().double()
        confidence = log_probabilities.amax(dim=1).exp().cpu().double()
        predicted = logits.argmax(dim=1).cpu()

        known = ~loss.isnan()  # one NaN makes all of an image's softmax NaN
        sums = self._sums
        _count(sums["images"], labels)
        _count(sums["top1"], labels[known & (rank < 1)])
        _count(sums["top5"], labels[known & (rank < 5)])
        _count(sums["predicted"], predicted[known])
        sums["unpredicted"] += (~known).sum()
        sums["loss"] += loss.sum()
        if "confusion" in sums:
            _count(sums["confusion"].view(-1), (labels * len(self.classes) + predicted)[known])
        # Bins are open below and closed above, as in the paper.
        edges = torch.arange(1, self.bins, dtype=torch.float64) / self.bins
        place = torch.bucketize(confidence[known], edges)
        _count(sums["bin_images"], place)
        _count(sums["bin_right"], place[rank[known] < 1])
        sums["bin_confidence"].index_add_(0, place, confidence[known])

    def _checked(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels, int64 on the CPU."""
        count = len(self.classes)
        if logits.ndim != 2 or logits.shape[1] != count or not logits.is_floating_point():
            raise ValueError(
                f"logits of shape {list(logits.shape)} and type {logits.dtype} are not (B, {count}) of a floating type"
            )
        integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if labels.shape != logits.shape[:1] or not integral:
            raise ValueError(
                f"labels of shape {list(labels.shape)} and type {labels.dtype} are not ({len(logits)},) whole numbers"
            )
        labels = labels.detach().cpu().long()
        outside = labels[(labels < 0) | (labels >= count)]
        if outside.numel():
            raise ValueError(f"label {int(outside[0])} is none of the {count} classes, which are 0 to {count - 1}")
        return labels

    def merge(self, other: "ClassificationMetrics") -> None:
        """Add what another has counted, of other images.

        Raises:
            ValueError: If it counts other classes or bins.
        """
        if other.bins != self.bins:
            raise ValueError(f"metrics with {other.bins} bins cannot be added to metrics with {self.bins}")
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
        """Go on from a state of metrics with as many classes and bins.

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
                    "it is of other classes or bins"
                )
        self._sums = {name: state[name].detach().to("cpu", zero.dtype, copy=True) for name, zero in zeros.items()}

    @property
    def images(self) -> int:
        """Images counted."""
        return int(self._sums["images"].sum())

    @property
    def unpredicted(self) -> int:
        """Images whose logits have no softmax, all counted as wrong."""
        return int(self._sums["unpredicted"])

    def compute(self) -> dict[str, float]:
        """The figures of all images.

        Returns:
            ``top1`` and ``top5``: percent, 0 to 100, of images whose label ranks first, and among the first five (with
            fewer classes: all). ``loss``: mean negative log-likelihood, in nats. ``ece``: expected calibration error,
            0 to 1 (arXiv 1706.04599, eq. 3). ``images``: their number.

        Raises:
            ValueError: If there are none.
        """
        count, sums = self.images, self._sums
        if count == 0:
            raise ValueError("no image was evaluated; check that the data has images that can be read")
        gaps = (sums["bin_right"] - sums["bin_confidence"]).abs().sum()
        return {
            "loss": float(sums["loss"]) / count,
            "top1": 100 * int(sums["top1"].sum()) / count,
            "top5": 100 * int(sums["top5"].sum()) / count,
            "ece": math.nan if self.unpredicted else float(gaps) / count,
            "images": count,
        }

    @property
    def confusion(self) -> Tensor:
        """``(K, K)`` int64: how many images of the class of a row are predicted as that of a column.

        Raises:
            ValueError: If there are more than 2000 classes.
        """
        if "confusion" not in self._sums:
            raise ValueError(
                f"no confusion matrix is kept for {len(self.classes)} classes, only up to {CONFUSION_CLASSES}; "
                "per_class() tells of each class"
            )
        return self._sums["confusion"].clone()

    def per_class(self) -> list[ClassFigures]:
        """The figures of each class, in the order of the logits."""
        columns = [self._sums[name].tolist() for name in ("images", "top1", "top5", "predicted")]
        return [
            ClassFigures(
                name,
                images,
                top1=_share(100 * first, images),
                top5=_share(100 * five, images),
                precision=_share(first, predicted),
                recall=_share(first, images),
                f1=_share(2 * first, images + predicted),
            )
            for name, images, first, five, predicted in zip(self.classes, *columns, strict=True)
        ]

    def reliability(self) -> list[ConfidenceBin]:
        """How often predictions of each confidence are right."""
        columns = [self._sums[name].tolist() for name in ("bin_images", "bin_confidence", "bin_right")]
        return [
            ConfidenceBin(i / self.bins, (i + 1) / self.bins, images, _share(confidence, images), _share(right, images))
            for i, (images, confidence, right) in enumerate(zip(*columns, strict=True))
        ]


def _count(counts: Tensor, places: Tensor) -> None:
    """Add one at each place, as often as it is named."""
    counts.index_add_(0, places, torch.ones_like(places))


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
