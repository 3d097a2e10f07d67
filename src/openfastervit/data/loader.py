"""Loaders whose batches depend on the seed alone.

Which images a step sees, and how each is augmented, follow from (seed, epoch, position in the epoch): not from the
number of processes or workers, nor from where a run was interrupted. So a resumed run sees what it would have seen,
and two processes see together what one would.
"""

import contextlib
import hashlib
import math
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from openfastervit.data.images import ImageError
from openfastervit.data.sources import Source


class Unreadable(NamedTuple):
    """An image that could not be read."""

    name: str
    reason: str


class Sample(NamedTuple):
    """One image, made ready, or the reasons why there is none."""

    image: Any
    """What the transform made of it; None where no image could be read."""
    target: Any
    """What is to be learned of it: a label, boxes, a map of labels; None where no image could be read."""
    name: str
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample stands: what it is and which random numbers it draws."""

    index: int
    """In the source."""
    epoch: int
    position: int
    """In the epoch, over all processes."""


SUBSTITUTES = 10
"""How many other images are tried in place of one that cannot be read, in training."""


class ByPosition(Protocol):
    """Images that can be asked for one by one; what a source of any task has."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls the image."""

    def open(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            ImageError: If it cannot be read.
        """


class PlacedImages(Dataset[Sample]):
    """Images of a source, made ready for a network; indexed by ``Place``.

    In training an unreadable image gives way to another one, drawn by the place's own random numbers, so that steps
    keep their size; in evaluation it is left out. Both are told in the sample. Subclasses say how one image is read.
    """

    def __init__(self, source: ByPosition, *, seed: int = 0, training: bool) -> None:
        self.source = source
        self.seed = seed
        self.training = training

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[Any, Any]:
        """An image, made ready, and what is to be learned of it.

        Raises:
            ImageError: If either cannot be read.
        """
        raise NotImplementedError

    def __getitem__(self, place: Place) -> Sample:
        with _seeded(self.seed, place.epoch, place.position):
            return self._sample(place.index)

    def _sample(self, index: int) -> Sample:
        unreadable: list[Unreadable] = []
        for _ in range(1 + (SUBSTITUTES if self.training else 0)):
            name = self.source.name(index)
            try:
                image, target = self.read(index)
            except ImageError as error:
                unreadable.append(Unreadable(name, str(error)))
                index = random.randrange(len(self.source))
                continue
            return Sample(image, target, name, tuple(unreadable))
        return Sample(None, None, name, tuple(unreadable))


class LabelledImages(PlacedImages):
    """Images with a label each."""

    source: Source

    def __init__(
        self, source: Source, transform: Callable[[Image.Image], Any], *, seed: int = 0, training: bool
    ) -> None:
        super().__init__(source, seed=seed, training=training)
        self.transform = transform

    def read(self, index: int) -> tuple[Any, int]:
        """The transformed image and its label."""
        label = int(self.source.labels[index])
        return self.transform(self.source.open(index)), label


class AnnotatedImages(PlacedImages):
    """Images whose targets change with them: boxes, masks, maps of labels.

    Args:
        source: The images.
        annotation: What is known of an image, by its position.
        transform: From both to what the network and its loss take.
        seed: Of augmentation.
        training: Whether an unreadable image gives way to another one.
    """

    def __init__(
        self,
        source: ByPosition,
        annotation: Callable[[int], Any],
        transform: Callable[[Image.Image, Any], tuple[Any, Any]],
        *,
        seed: int = 0,
        training: bool,
    ) -> None:
        super().__init__(source, seed=seed, training=training)
        self.annotation, self.transform = annotation, transform

    def read(self, index: int) -> tuple[Any, Any]:
        """The image and its target, transformed together."""
        return self.transform(self.source.open(index), self.annotation(index))


def seed_everything(*numbers: int | str) -> None:
    """Seed the generators of ``random``, NumPy and torch from numbers that say where in a run we are."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    random.seed(digest[:8])
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    torch.manual_seed(int.from_bytes(digest[12:20], "little", signed=True))


@contextlib.contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed the generators, and put back what they were: with no workers, they are those of the training itself."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_everything("sample", *numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class TrainingOrder(Sampler[list[Place]]):
    """Batches of one epoch for one process.

    An epoch is one shuffled order for all processes. With ``repeats`` of 3 each image stands three times in a row,
    and a third of the images is seen (repeated augmentation, Hoffer et al., arXiv 1901.09335). What does not fill a
    whole step is left out, another rest in each epoch.

    Args:
        images: How many there are.
        batch_size: Of one process.
        processes: How many train together.
        process: Which of them this is.
        multiple: Batches come in groups of so many: the accumulation of gradients.
        repeats: How many times an image stands in the order.
        seed: Of the order.
        epochs: How many follow each other: a loader goes over from one to the next without a pause.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        processes: int = 1,
        process: int = 0,
        multiple: int = 1,
        repeats: int = 1,
        seed: int = 0,
        epochs: int = 1,
    ) -> None:
        self.images, self.batch_size, self.processes, self.process = images, batch_size, processes, process
        self.repeats, self.seed, self.epochs = repeats, seed, epochs
        self.batches = images // (batch_size * processes) // multiple * multiple
        """Of an epoch."""
        self.epoch = 0
        self.start = 0

    def begin(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch, and the batch of it, that come first."""
        self.epoch, self.start = epoch, batch

    def __len__(self) -> int:
        return self.batches * (self.epochs - self.epoch) - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        together = self.batch_size * self.processes
        for epoch in range(self.epoch, self.epochs):
            order = self._order(epoch)
            for batch in range(self.start if epoch == self.epoch else 0, self.batches):
                positions = range(batch * together + self.process, (batch + 1) * together, self.processes)
                yield [Place(int(order[position]), epoch, position) for position in positions]

    def _order(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
        if self.repeats > 1:
            order = np.repeat(order[: -(-self.images // self.repeats)], self.repeats)[: self.images]
        return order


class EvaluationOrder(Sampler[list[Place]]):
    """Each image once, over all processes; the last batches may be smaller, and some processes have one less."""

    def __init__(self, images: int, batch_size: int, *, processes: int = 1, process: int = 0) -> None:
        self.mine = range(process, images, processes)
        self.batch_size = batch_size
        self.most = math.ceil(math.ceil(images / processes) / batch_size)
        """Batches of the process that has most."""

    def __len__(self) -> int:
        return math.ceil(len(self.mine) / self.batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        for start in range(0, len(self.mine), self.batch_size):
            yield [Place(index, 0, index) for index in self.mine[start : start + self.batch_size]]


def create_loader(
    images: PlacedImages,
    order: TrainingOrder | EvaluationOrder,
    collate: Callable[[Sequence[Sample]], Any],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A loader of batches in the order given, decoded by so many worker processes."""
    return DataLoader(
        images,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )


def close(batches: Iterator[Any]) -> None:
    """End a loader's iterator and its workers now, not when it is no longer referred to (a traceback may)."""
    shutdown = getattr(batches, "_shutdown_workers", None)
    if shutdown is None:
        return
    workers = getattr(batches, "_workers", [])
    try:
        shutdown()
    finally:
        for worker in workers:
            if worker.is_alive():  # stuck, as in reading from a disk that does not answer
                worker.kill()


def _quiet_worker(_: int) -> None:
    """One thread a worker. Signals to the whole group are for the training, which finishes its step and saves: a
    worker that died of one would end it with an error. ``close`` ends the workers; without the training they end by
    themselves.
    """
    torch.set_num_threads(1)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
