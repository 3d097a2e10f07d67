"""Evaluating a network on a data set, on one process or several, each image counted once."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from openfastervit.data.loader import Unreadable, close
from openfastervit.tasks.task import Batch, Metrics


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    metrics: Metrics,
    *,
    inputs: Callable[[Batch], tuple[Any, ...]],
    predict: Callable[[nn.Module, Batch], Any] | None = None,
    device: torch.device,
    channels_last: bool = False,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    steps: int | None = None,
    together: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[Unreadable]:
    """Let ``metrics`` count what a network makes of images; their results are left in it.

    Args:
        model: In any mode; it is in evaluation mode while this runs.
        batches: Of this process.
        metrics: What counts.
        inputs: The network's arguments for a batch.
        predict: What the network makes of a batch, where that is more than a call with these arguments.
        device: Where the network is.
        channels_last: Whether images are laid out with channels innermost.
        autocast: The precision.
        steps: How many steps all processes take, those with fewer batches too. None: as many as there are batches.
        together: Whether the network must run in every step: a sharded one runs on all processes at once, also on those
            whose batches have come to an end or have no image that could be read.
        after_step: Told each step.

    Returns:
        The images of this process that could not be read; they are in no figure.
    """
    unreadable: list[Unreadable] = []
    was_training = model.training
    model.eval()
    blank: tuple[Any, ...] | None = None
    iterator = iter(batches)
    try:
        with torch.no_grad():
            for step, batch in enumerate(_filled(iterator, steps)):
                if batch is not None:
                    unreadable += batch.unreadable
                    batch = batch.to(device, channels_last)
                    if together and blank is None:
                        blank = tuple(map(_blank, inputs(batch)))
                if batch is not None and len(batch):
                    with autocast():
                        outputs = model(*inputs(batch)) if predict is None else predict(model, batch)
                    metrics.update(outputs, batch.targets)
                elif blank is not None:
                    with autocast():
                        model(*blank)  # for the other processes, which need this one's share of the weights
                after_step(step)
    finally:
        close(iterator)
        model.train(was_training)
    return unreadable


def _blank(value: Any) -> Any:
    """One black image of the shape of those in a batch, be there any in it."""
    return value.new_zeros((1, *value.shape[1:])) if isinstance(value, torch.Tensor) else value


def _filled(batches: Iterator[Batch], steps: int | None) -> Iterator[Batch | None]:
    """The batches, then None until there are ``steps``."""
    done = 0
    for done, batch in enumerate(batches, start=1):  # noqa: B007
        yield batch
    for _ in range(done, steps or 0):
        yield None
