"""Timing against a clock that the tests move."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.benchmarking.timing import calls_for, percentile, quartiles, tail, time_calls, warm_up

numbers = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200)


class Clock:
    """Time passes in calls alone, and as much as ``durations`` say, the last one for ever."""

    def __init__(self, *durations: float) -> None:
        self.now = 0.0
        self.durations = list(durations)
        self.calls = 0

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def test_each_call_is_timed_and_the_first_is_not_counted() -> None:
    clock = Clock(100, 1, 2, 3)
    assert time_calls(clock.work, 3, clock=clock) == [1, 2, 3]
    assert clock.calls == 4
    clock = Clock(100, 1, 2, 3)
    assert time_calls(clock.work, 3, settle=False, clock=clock) == [100, 1, 2]


def test_warming_up_goes_on_until_time_and_calls_suffice() -> None:
    clock = Clock(60, 4, 0.25)
    assert warm_up(clock.work, calls=3, seconds=10, clock=clock) == 0.25
    assert clock.calls == 2 + 24  # the first call's minute does not count
    clock = Clock(5)
    assert warm_up(clock.work, calls=3, seconds=1, clock=clock) == 5
    assert clock.calls == 3


@pytest.mark.parametrize(
    ("seconds_a_call", "seconds", "least", "calls"), [(0.25, 1, 1, 4), (0.3, 1, 1, 4), (10, 1, 1, 1), (10, 1, 20, 20)]
)
def test_calls_of_a_repeat(seconds_a_call: float, seconds: float, least: int, calls: int) -> None:
    assert calls_for(seconds_a_call, seconds, least) == calls


@given(numbers)
def test_percentiles_are_numpys(values: list[float]) -> None:
    assert quartiles(values) == pytest.approx(tuple(np.percentile(values, [25, 75])))
    for percent in (50, 99):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_a_tail_needs_a_hundred_calls() -> None:
    assert tail([1.0] * 99) is None
    assert tail([*[1.0] * 98, 9.0, 9.0]) == pytest.approx(9.0)
