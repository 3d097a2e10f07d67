"""Letting a trained network judge every image of a data set once, whatever the task, on one process or several."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

from openfastervit.data.loader import EvaluationOrder, PlacedImages, Unreadable, close, create_loader
from openfastervit.tasks.task import Batch, Metrics
from openfastervit.training.console import Console
from openfastervit.training.evaluation import evaluate
from openfastervit.training.parallel import Processes, loader_workers

AnyMetrics = TypeVar("AnyMetrics", bound=Metrics)


def judge(
    network: nn.Module,
    images: PlacedImages,
    metrics: AnyMetrics,
    processes: Processes,
    *,
    collate: Callable[[Sequence[Any]], Batch],
    predict: Callable[[nn.Module, Batch], Any],
    batch_size: int,
    workers: int | None = None,
    max_unreadable: float = 0.01,
) -> tuple[AnyMetrics, list[Unreadable]]:
    """Count what a network makes of all images, shared out among the processes.

    Args:
        network: It is moved to the processes' device.
        images: For evaluation.
        metrics: That have counted nothing.
        processes: All of them call this.
        collate: Makes a batch of samples.
        predict: What the network makes of a batch, as the metrics take it.
        batch_size: Images a process takes at once.
        workers: Processes that decode, for each process; None for as many as it has cores, at most 8.
        max_unreadable: Share of images that cannot be read above which it ends with an error.

    Returns:
        The counts over all images that could be read, and those that could not. The same on all processes.

    Raises:
        ValueError: If too many images cannot be read, or the data and the network do not go together.
    """
    order = EvaluationOrder(len(images), batch_size, processes=processes.count, process=processes.rank)
    loader = create_loader(
        images,
        order,
        collate,
        workers=loader_workers(workers, processes),
        pin_memory=processes.device.type == "cuda",
    )
    noted: list[Unreadable] = []

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
            network.to(processes.device),
            _noting(loader, noted),
            metrics,
            inputs=lambda batch: (batch.images,),
            predict=predict,
            device=processes.device,
            autocast=processes.accelerator.autocast,
            steps=order.most,
            after_step=after_step,
        )
    everyone = processes.gather([(metrics, noted)])
    counts, unreadable = everyone[0]
    for other, failures in everyone[1:]:
        counts.merge(other)
        unreadable += failures
    return counts, sorted(unreadable)


def _noting(loader: Any, noted: list[Unreadable]) -> Iterator[Batch]:
    """The batches; what could not be read is noted as they pass."""
    batches = iter(loader)
    try:
        for batch in batches:
            noted += batch.unreadable
            yield batch
    finally:
        close(batches)
