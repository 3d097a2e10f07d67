"""Labelled images by position: what every source of them offers, parts of one, and the order of classes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

MOST_UNNAMED = 1_000_000
"""Classes that bare numbers may stand for; a larger label is taken for a damaged one."""


class Source(Protocol):
    """Labelled images by position: random access, the same order every time.

    A source can be pickled, and read by several threads or processes at once: it goes to the workers of a loader.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""

    @property
    def labels(self) -> Sequence[int] | np.ndarray:
        """The label of each image; known without decoding any."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls the image: "ant/3.jpg", "train-0001.tar/0012.jpg", "train[17]". No two are the same."""

    def open(self, index: int) -> Image.Image:
        """The image, decoded by ``open_image``.

        Raises:
            ImageError: If it cannot be read.
        """


class Subset:
    """Some images of a source, in the order of ``indices``; the classes stay those of the source.

    Raises:
        ValueError: If an index is not in the source.
    """

    def __init__(self, source: Source, indices: Iterable[int] | np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        outside = self.indices[(self.indices < 0) | (self.indices >= len(source))]
        if len(outside):
            raise ValueError(f"indices: {outside[0]} is not in a source of {len(source)} images; count from 0")
        self.classes = source.classes
        self.labels = np.asarray(source.labels)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The name of the image in the source."""
        return self.source.name(int(self.indices[index]))

    def open(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            ImageError: If it cannot be read.
        """
        return self.source.open(int(self.indices[index]))


def order_classes(
    labels: Sequence[int] | np.ndarray, own: Sequence[str] | None, wanted: Sequence[str] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and names of classes, in the order that is wanted.

    Args:
        labels: Positions in ``own``.
        own: Names that the data gives its classes; None where labels are bare numbers. Those count as positions in
            ``wanted``, and are their own names without it.
        wanted: The order asked for; None for the data's own.
        where: The data, as errors name it.

    Returns:
        Labels, 64-bit, as positions in the names beside them.

    Raises:
        ValueError: If a label has no name, or a name is not among those wanted.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if wanted is not None:
        check_classes(wanted, "classes")
    if own is not None:
        check_classes(own, f"the classes of {where}")
    names = own if own is not None else wanted
    known = MOST_UNNAMED if names is None else len(names)
    wrong = np.flatnonzero((labels < 0) | (labels >= known))
    if len(wrong):
        label = labels[wrong[0]]
        if label < 0:
            reason = "which stands for none; give a split that is labelled"
        elif names is None:
            reason = "too large for a class without a name; name the classes"
        else:
            reason = f"but there are {known} classes, from 0 ({names[0]}) to {known - 1} ({names[-1]})"
        raise ValueError(f"{where}: image {wrong[0]} has the label {label}, {reason}")
    if names is None:
        return labels, tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))
    if own is None or wanted is None:
        return labels, tuple(names)
    places = {name: place for place, name in enumerate(wanted)}
    for name in own:
        if name not in places:
            near = difflib.get_close_matches(name, wanted, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{where}: class {name!r} is not among the {len(wanted)} known ones ({some(wanted)}); "
                f"{hint}rename it, leave it out, or train with it"
            )
    return np.array([places[name] for name in own], dtype=np.int64)[labels], tuple(wanted)


def check_classes(classes: Sequence[str], what: str) -> None:
    """A list of names in which each means one class.

    Raises:
        ValueError: If it is empty or a name comes twice.
    """
    if isinstance(classes, str) or not len(classes):
        raise ValueError(f"{what}: {classes!r} must be a list of names, one for each class")
    if len(set(classes)) < len(classes):
        twice = next(name for place, name in enumerate(classes) if name in classes[:place])
        raise ValueError(f"{what}: {twice!r} comes twice; each class needs a name of its own")


def some(names: Iterable[str], most: int = 5) -> str:
    """A few of many names, for an error."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
