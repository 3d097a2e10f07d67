"""How costs grow, from what was measured: exponents, and where one design overtakes another."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FROM = 448
"""Side of the smallest images that exponents are fitted to: below, what does not depend on the size shows."""
COSTS = {"time": "ms_per_image", "memory": "memory_mb", "multiply_adds": "multiply_adds"}


def exponent(pixels: Sequence[float], costs: Sequence[float]) -> float | None:
    """``a`` of ``cost = b * pixels ** a``, by least squares of the logarithms; None of fewer than three points."""
    if len(pixels) < 3:
        return None
    return float(np.polyfit(np.log(pixels), np.log(costs), 1)[0])


def crossover(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """The side from which on ``ours`` costs less than ``theirs``, between two sides where both were measured.

    Both are taken to follow a power of the side between neighbours. None where ours costs less from the smallest side
    on, or does not at the largest.
    """
    sides = sorted(ours.keys() & theirs.keys())
    gaps = [math.log(ours[side] / theirs[side]) for side in sides]
    if not gaps or gaps[-1] >= 0 or all(gap < 0 for gap in gaps):
        return None
    last = max(number for number, gap in enumerate(gaps) if gap >= 0)
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    low, high = math.log(sides[last]), math.log(sides[last + 1])
    return math.exp(low + share * (high - low))


def fits(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each design and engine: exponents over the pixels, and the side from which hierarchical attention wins.

    Args:
        lines: Of the study's table.
    """
    lines = [line for line in lines if line["engine"]]  # others were counted and not run
    rows = []
    for engine, design in dict.fromkeys((line["engine"], line["attention"]) for line in lines):
        own = [line for line in lines if (line["engine"], line["attention"]) == (engine, design)]
        row: dict[str, Any] = {"attention": design, "engine": engine}
        for cost, column in COSTS.items():
            points = [(int(line["side"]) ** 2, float(line[column])) for line in own if line[column] not in ("", None)]
            points = [(pixels, value) for pixels, value in points if pixels >= FROM**2 and value > 0]
            found = exponent([pixels for pixels, _ in points], [value for _, value in points])
            row[f"exponent_of_{cost}"] = "" if found is None else f"{found:.3f}"
            row[f"points_of_{cost}"] = len(points)
        measured = [int(line["side"]) for line in own if line["ms_per_image"] not in ("", None)]
        row["largest_side"] = max(measured, default="")
        row["hat_faster_from_side"] = (
            "" if design == "hat" else _told(*(_times(lines, engine, n) for n in ("hat", design)))
        )
        rows.append(row)
    return rows


def _told(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Where ours costs less: a side, ``"<=224"`` if at all from 224 on, empty if not at the largest."""
    sides = ours.keys() & theirs.keys()
    if sides and all(ours[side] < theirs[side] for side in sides):
        return f"<={min(sides)}"
    found = crossover(ours, theirs)
    return "" if found is None else f"{found:.0f}"


def _times(lines: Sequence[Mapping[str, Any]], engine: str, design: str) -> dict[int, float]:
    return {
        int(line["side"]): float(line["ms_per_image"])
        for line in lines
        if (line["engine"], line["attention"]) == (engine, design) and line["ms_per_image"] not in ("", None)
    }
