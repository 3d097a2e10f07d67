"""Times of calls: warming up, measuring, and what the numbers say.

Every call is waited for before the clock is read, on a GPU by synchronising with it: a time is what a program sees that
needs its result before it goes on.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence

Clock = Callable[[], float]
"""Seconds since whenever."""

TAIL_CALLS = 100
"""A 99th percentile of fewer calls than this is one of their largest, chosen by chance: none is given."""


def warm_up(
    call: Callable[[], object], *, calls: int = 3, seconds: float = 0.3, clock: Clock = time.perf_counter
) -> float:
    """Call until the first, slow calls are over. The last calls' median tells what one costs.

    Args:
        call: Done when it returns.
        calls: At least so many.
        seconds: At least so long, the first call aside: it may compile.
        clock: What tells the time.

    Returns:
        Seconds a call.
    """
    call()
    began = clock()
    times: list[float] = []
    while len(times) < calls - 1 or clock() - began < seconds:
        times.append(_timed(call, clock))
    return statistics.median(times[-5:])


def time_calls(
    call: Callable[[], object], count: int, *, settle: bool = True, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds of each of ``count`` calls, after one that is not counted: other work has filled the caches.

    Args:
        call: Done when it returns.
        count: Calls.
        settle: Make the one that is not counted. Calls of seconds fill the caches many times over: they need none.
        clock: What tells the time.
    """
    if settle:
        call()
    return [_timed(call, clock) for _ in range(count)]


def calls_for(seconds_a_call: float, seconds: float, least: int = 1) -> int:
    """Calls that last about so long together, and no fewer than ``least``."""
    return max(least, math.ceil(seconds / max(seconds_a_call, 1e-9)))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile, between two values in proportion."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def tail(values: Sequence[float]) -> float | None:
    """The 99th percentile, where there are values enough to have one."""
    return percentile(values, 99) if len(values) >= TAIL_CALLS else None


def _timed(call: Callable[[], object], clock: Clock) -> float:
    started = clock()
    call()
    return clock() - started
