"""Evaluating a classifier on labelled images whose classes need not be its own, on one process or several."""

import functools

from timm.data import create_transform
from torch import Tensor

from openfastervit.data.imagenet import ClassMatch
from openfastervit.data.loader import LabelledImages, Unreadable
from openfastervit.data.sources import Source
from openfastervit.inference import Classifier
from openfastervit.tasks.classification import collate
from openfastervit.tasks.metrics import ClassificationMetrics
from openfastervit.training.judging import judge
from openfastervit.training.parallel import Processes


def evaluate_classifier(
    classifier: Classifier,
    source: Source,
    match: ClassMatch,
    processes: Processes,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    max_unreadable: float = 0.01,
) -> tuple[ClassificationMetrics, list[Unreadable]]:
    """Let a classifier judge every image once, shared out among the processes.

    Args:
        classifier: The network, which is moved to the processes' device, and how its images are prepared.
        source: Images of 3 channels or 1, as the network takes them.
        match: How the source's labels map to the network's outputs.
        processes: All of them call this.
        batch_size: Images a process takes at once. It changes no figure but by rounding.
        workers: Processes that decode, for each process; None for as many as it has cores, at most 8.
        max_unreadable: Share of images that cannot be read above which it ends with an error.

    Returns:
        The counts over all images that could be read, of the classes of ``match``; and those that could not. The same
        on all processes.

    Raises:
        ValueError: If too many images cannot be read, or the data and the network do not go together.
    """
    preparation = classifier.preparation
    matched, unreadable = judge(
        classifier.model,
        LabelledImages(source, create_transform(**preparation), training=False),
        _Matched(ClassificationMetrics(match.classes), match),
        processes,
        collate=functools.partial(collate, input_size=preparation["input_size"]),
        predict=lambda model, batch: model(batch.images),
        batch_size=batch_size,
        workers=workers,
        max_unreadable=max_unreadable,
    )
    return matched.metrics, unreadable


class _Matched:
    """Counts in the matched classes what a network makes of the data's labels."""

    def __init__(self, metrics: ClassificationMetrics, match: ClassMatch) -> None:
        self.metrics, self.match = metrics, match

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.metrics.update(self.match.restrict(outputs), self.match.targets(targets))

    def merge(self, other: "_Matched") -> None:
        self.metrics.merge(other.metrics)

    def compute(self) -> dict[str, float]:
        return self.metrics.compute()
