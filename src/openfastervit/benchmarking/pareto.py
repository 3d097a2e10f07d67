"""Which network to take: the Pareto front of accuracy against speed, and what is not faster than its equals."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from openfastervit.benchmarking.cases import Row


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, by the first number rising.

    A point beats another that it equals or exceeds in both numbers, and exceeds in one. Equal points are all kept.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept[::-1]


def fastest(rows: Iterable[Row]) -> list[Row]:
    """Of the rows of a network at one precision, batch and size, that of its fastest engine."""
    best: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (row.model, row.precision, row.batch_size, row.height, row.width)
        if row.measured and (key not in best or _speed(row) > _speed(best[key])):
            best[key] = row
    return list(best.values())


def judged(rows: Sequence[Row], *, across_engines: bool = False) -> list[Row]:
    """The rows, each with the networks of equal or better published top-1 that it is not faster than.

    Compared are rows of one precision and batch whose speed was measured at the size that their top-1 was published at,
    be it the same size or not, and whose weights learned from the same data. A network is faster only where its lower
    quartile is above the other's upper quartile.

    Args:
        rows: All that are to be compared.
        across_engines: Compare rows of different engines too: for rows that are each network's fastest.
    """
    return [replace(row, not_faster_than=" ".join(_not_faster_than(row, rows, across_engines))) for row in rows]


def _not_faster_than(row: Row, rows: Sequence[Row], across_engines: bool) -> list[str]:
    if not row.comparable:
        return []
    return [
        other.model if other.height == row.height else f"{other.model}@{other.height}"
        for other in rows
        if other.comparable
        and other.model != row.model
        and (across_engines or other.engine == row.engine)
        and (other.precision, other.batch_size, other.top1_data) == (row.precision, row.batch_size, row.top1_data)
        and _number(other.top1_published) >= _number(row.top1_published)
        and _number(other.images_per_second_q3) >= _number(row.images_per_second_q1)
    ]


def _speed(row: Row) -> float:
    return _number(row.images_per_second)


def _number(value: float | None) -> float:
    assert value is not None
    return value
