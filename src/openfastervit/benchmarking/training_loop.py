"""How fast the training loop is, and what it waits for: the whole of it, its loader alone, its step alone."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from openfastervit.data.loader import close
from openfastervit.tasks.classification import Classification
from openfastervit.tasks.task import Batch
from openfastervit.training.parallel import Processes
from openfastervit.training.recipe import ClassificationRecipe
from openfastervit.training.recorder import Recorder
from openfastervit.training.trainer import Trainer

ROUNDS = 3
"""The three are measured in turn, so often."""
WARM_UP = 3
"""Updates before the first measurement."""


@dataclass(frozen=True)
class LoopTimes:
    """Medians over the rounds; of one process."""

    loop: float
    """Images a second of the loop: loading and training at once."""
    loader: float
    """Images a second of the loader, with nothing else to do."""
    step: float
    """Images a second of the step, on a batch that is there already."""
    waiting: float
    """Share of the loop's time spent waiting for a batch."""
    waiting_most: float
    """The largest of the rounds."""
    peak_bytes: int
    """Memory: of the GPU, or of the process and its largest worker."""
    workers: int


def measure(
    recipe: ClassificationRecipe, *, updates: int = 20, tell: Callable[[str], None] = lambda line: None
) -> LoopTimes:
    """Measure the loop that a recipe describes; nothing is written and no result kept.

    Args:
        recipe: What would be trained.
        updates: Of each measurement.
        tell: Told what goes on.

    Raises:
        ValueError: If the data does not suffice for so many updates.
    """
    recipe.check()
    processes = Processes(recipe)
    task = Classification(recipe, seed=recipe.seed)
    trainer = Trainer(recipe, task, processes, Recorder(None, recipe, processes))
    trainer.model.train()
    images = recipe.batch_size * recipe.accumulate
    batches = iter(trainer.loader)
    loops: list[float] = []
    loaders: list[float] = []
    steps: list[float] = []
    waits: list[float] = []
    try:
        kept = _group(batches, recipe.accumulate)
        for _ in range(WARM_UP):
            trainer._update(kept)
        for number in range(1, ROUNDS + 1):
            tell(f"round {number} of {ROUNDS}")
            steps.append(images * updates / _timed(lambda: _steps(trainer, kept, updates), processes))
            loaders.append(_loader_rate(trainer, updates * recipe.accumulate, recipe.batch_size))
            _group(batches, recipe.accumulate)  # fills the queues again, as they are in the middle of an epoch
            waited = 0.0
            started = time.perf_counter()
            for _ in range(updates):
                asked = time.perf_counter()
                group = _group(batches, recipe.accumulate)
                waited += time.perf_counter() - asked
                trainer._update(group)
            _settle(processes)
            seconds = time.perf_counter() - started
            loops.append(images * updates / seconds)
            waits.append(waited / seconds)
    except StopIteration:
        raise ValueError(f"{recipe.data} has too few images for {ROUNDS} x {updates} updates; ask for fewer") from None
    finally:
        close(batches)
    return LoopTimes(
        loop=statistics.median(loops),
        loader=statistics.median(loaders),
        step=statistics.median(steps),
        waiting=statistics.median(waits),
        waiting_most=max(waits),
        peak_bytes=_peak(processes),
        workers=trainer.loader.num_workers,
    )


def _group(batches: Iterator[Batch], count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def _steps(trainer: Trainer, group: list[Batch], updates: int) -> None:
    for _ in range(updates):
        trainer._update(group)


def _loader_rate(trainer: Trainer, batches: int, batch_size: int) -> float:
    """Images a second of a loader of its own, from its second batch on: the first one pays for starting workers."""
    iterator: Iterator[Any] = iter(trainer.loader)
    try:
        next(iterator)
        started = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        return batch_size * batches / (time.perf_counter() - started)
    finally:
        close(iterator)


def _timed(work: Callable[[], object], processes: Processes) -> float:
    _settle(processes)
    started = time.perf_counter()
    work()
    _settle(processes)
    return time.perf_counter() - started


def _settle(processes: Processes) -> None:
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)


def _peak(processes: Processes) -> int:
    if processes.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(processes.device))
    unit = 1 if sys.platform == "darwin" else 1024
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(unit * (own + worker))
