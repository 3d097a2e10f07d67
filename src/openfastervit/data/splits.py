"""Splits of a data set: what they are called, and making one where there is none."""

import difflib
import hashlib
from collections.abc import Sequence

import numpy as np

from openfastervit.data.labelled import Source, Subset, some

TRAINING = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "eval", "evaluation", "test")
SPLITS = (*TRAINING, *HELD_OUT)
"""Names of splits, in any case. Where one is not there, another of its kind stands for it; the first comes first."""


def match_split(split: str, available: Sequence[str]) -> str | None:
    """The split of that name among those available, or else the first that means the same; None if there is none."""
    folded = {name.lower(): name for name in reversed(available)}
    kinds = [kind for kind in (TRAINING, HELD_OUT) if split.lower() in kind]
    candidates = [split.lower(), *(name for kind in kinds for name in kind)]
    if split in available:
        return split
    return next((folded[name] for name in candidates if name in folded), None)


def choose_split(split: str, available: Sequence[str], where: str) -> str | None:
    """The split to open, as the data calls it; None where the data is not divided, and is all there is of any split.

    Raises:
        ValueError: If the data is divided and has no such split, or the name is unknown.
    """
    found = match_split(split, available)
    if found is not None:
        return found
    if available:
        raise ValueError(f"split={split!r}: there is none in {where}; there is {some(available, 20)}")
    if split.lower() not in SPLITS:
        near = difflib.get_close_matches(split.lower(), SPLITS, n=1) or [SPLITS[0]]
        raise ValueError(
            f"split={split!r} is unknown; did you mean {near[0]!r}? {where} is not divided, and serves as any of "
            f"{', '.join(SPLITS)}"
        )
    return None


def split_source(source: Source, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Hold out part of a source, class by class.

    Which images are held out follows from their names and the seed, by a hash: so it is the same on every machine,
    and stays nearly the same when images are added. Both parts keep the order of the source.

    Args:
        source: Labelled images.
        fraction: Of each class's images, between 0 and 1, rounded; but at least one is held out where there are two,
            and at least one is not.
        seed: Another one holds out others.

    Returns:
        Training part, held-out part.

    Raises:
        ValueError: If the fraction is out of range, or no class has two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction held out for validation must be above 0 and below 1, not {fraction}")
    labels = np.asarray(source.labels)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    held_out: list[int] = []
    for members in np.split(order, starts[1:]):
        count = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        held_out += sorted(members.tolist(), key=lambda index: (_rank(source.name(index), seed), index))[:count]
    if not held_out:
        raise ValueError(
            f"no class has two images ({len(source)} images, {len(source.classes)} classes), so that none can be held "
            "out; add images, or a folder val"
        )
    keep = np.ones(len(source), dtype=bool)
    keep[held_out] = False
    return Subset(source, np.flatnonzero(keep)), Subset(source, np.flatnonzero(~keep))


def _rank(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
