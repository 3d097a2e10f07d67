"""Folders of small labelled pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from openfastervit.data import Source
from tests.pocket import picture


def write_tree(folder: Path, classes: Mapping[str, int]) -> Path:
    """A folder for each class, with that many pictures of 12 x 10 pixels, no two the same."""
    seed = 0
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(seed, (12, 10)).save(folder / name / f"{i}.png")
            seed += 1
    return folder


def pairs(source: Source) -> list[tuple[str, str]]:
    """Name and class of each image."""
    return [(source.name(i), source.classes[label]) for i, label in enumerate(source.labels)]


def pixels(source: Source, indices: Sequence[int] | None = None) -> list[np.ndarray]:
    return [np.asarray(source.open(i)) for i in (range(len(source)) if indices is None else indices)]
