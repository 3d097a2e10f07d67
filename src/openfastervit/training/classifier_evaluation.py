"""Evaluating a classifier on labelled images whose classes need not be its own, on one process or several."""

import functools
import math
from collections.abc import Iterator
from typing import Any

from timm.data import create_transform
from torch import Tensor

from openfastervit.data.imagenet import ClassMatch
from openfastervit.data.loader import EvaluationOrder, LabelledImages, Unreadable, close, create_loader
from openfastervit.data.sources import Source
from openfastervit.inference import Classifier
from openfastervit.tasks.classification import collate
from openfastervit.tasks.metrics import ClassificationMetrics
from openfastervit.tasks.task import Batch
from openfastervit.training.console import Console
from openfastervit.training.evaluation import evaluate
from openfastervit.training.parallel import Processes, loader_workers


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
    images = LabelledImages(source, create_transform(**preparation), training=False)
    order = EvaluationOrder(len(images), batch_size, processes=processes.count, process=processes.rank)
    loader = create_loader(
        images,
        order,
        functools.partial(collate, input_size=preparation["input_size"]),
        workers=loader_workers(workers, processes),
        pin_memory=processes.device.type == "cuda",
    )
    noted: list[Unreadable] = []
    counts = ClassificationMetrics(match.classes)

    def after_step(step: int) -> None:
        (unreadable,) = processes.agree([len(noted)])
        if unreadable > math.ceil(max_unreadable * len(images)):
            example = f"; one of them is {noted[0].name}: {noted[0].reason}" if noted else ""
            raise ValueError(
                f"{unreadable:.0f} of {len(images)} images cannot be read, more than "
                f"max_unreadable={max_unreadable}{example}"
            )
        console.step("evaluating", min((step + 1) * batch_size * processes.count, len(images)), len(images))

    with Console(processes.is_main) as console:
        evaluate(
            classifier.model.to(processes.device),
            _noting(loader, noted),
            _Matched(counts, match),
            inputs=lambda batch: (batch.images,),
            device=processes.device,
            autocast=processes.accelerator.autocast,
            steps=order.most,
            after_step=after_step,
        )
    metrics = ClassificationMetrics(match.classes)
    unreadable: list[Unreadable] = []
    for state, failures in processes.gather([(counts.state(), noted)]):
        part = ClassificationMetrics(match.classes)
        part.load_state(state)
        metrics.merge(part)
        unreadable += failures
    return metrics, sorted(unreadable)


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


def _noting(loader: Any, noted: list[Unreadable]) -> Iterator[Batch]:
    """The batches; what could not be read is noted as they pass."""
    batches = iter(loader)
    try:
        for batch in batches:
            noted += batch.unreadable
            yield batch
    finally:
        close(batches)
