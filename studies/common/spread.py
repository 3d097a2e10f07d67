"""Figures of several seeds, and what may be said of two sets of them.

The rule: where the ranges of the seeds overlap, from the least to the most, the verdict is "no difference seen". Of
two equal networks with three seeds each, one in ten pairs is apart by chance (2 of the 20 orders), so of many
comparisons some will be.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NO_DIFFERENCE = "no difference seen"
TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Spread:
    """Mean and range."""

    mean: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.fmean(values), min(values), max(values))


def verdict(values: Sequence[float], base: Sequence[float]) -> str:
    """What may be said of a variant beside what it is compared with, where more is better.

    Args:
        values: The variant's, one a seed.
        base: Of what it is compared with.

    Returns:
        ``"better"`` or ``"worse"`` where all its seeds are above, or below, all of the base's; else
        ``"no difference seen"``; ``"too few seeds"`` where either has less than two.
    """
    if min(len(values), len(base)) < 2:
        return TOO_FEW
    if min(values) > max(base):
        return "better"
    if max(values) < min(base):
        return "worse"
    return NO_DIFFERENCE
