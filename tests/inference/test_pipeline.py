"""Loading and running at the same time: order, bounds, errors, and an end that leaves no thread behind."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfastervit.inference.pipeline import AHEAD, overlapped


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("load_", "run_"))]


@settings(max_examples=40)
@given(count=st.integers(0, 40), batch_size=st.integers(1, 9), workers=st.integers(1, 4), seed=st.randoms())
def test_order_and_batches_are_those_of_the_items(count: int, batch_size: int, workers: int, seed):
    pauses = [seed.random() / 500 for _ in range(count)]

    def load(item: int) -> int:
        time.sleep(pauses[item])
        return 10 * item

    found = list(overlapped(range(count), load, list, batch_size=batch_size, workers=workers))
    expected = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    assert found == [(batch, [10 * item for item in batch]) for batch in expected]
    assert threads() == []


def test_no_more_is_taken_than_is_needed():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    batches = overlapped(items(), lambda item: item, sum, batch_size=10, workers=2)
    for number, _ in enumerate(batches, 1):
        assert len(taken) <= 10 * (number + AHEAD)
        if number == 20:
            break
    batches.close()
    assert len(taken) <= 10 * (20 + AHEAD)
    assert threads() == []


def test_loading_goes_on_while_a_batch_runs_and_while_the_caller_is_busy():
    """Each stage waits for the next one to have begun on what follows: in one line they would wait for ever."""
    loaded = [threading.Event() for _ in range(12)]
    ran = [threading.Event() for _ in range(3)]

    def load(item: int) -> int:
        loaded[item].set()
        return item

    def run(batch: list[int]) -> int:
        number = batch[0] // 4
        if number < 2:
            assert loaded[4 * (number + 1)].wait(30)  # of the batch after it
        ran[number].set()
        return number

    for batch, number in overlapped(range(12), load, run, batch_size=4, workers=2):
        assert batch[0] // 4 == number
        if number < 2:
            assert ran[number + 1].wait(30)  # while this one is in the caller's hands


def test_one_batch_runs_at_a_time_and_loads_are_spread():
    running, loaders = threading.Lock(), set()

    def load(item: int) -> int:
        loaders.add(threading.current_thread().name)
        time.sleep(0.001)
        return item

    def run(batch: list[int]) -> str:
        assert running.acquire(blocking=False)
        time.sleep(0.001)
        running.release()
        return threading.current_thread().name

    runners = {name for _, name in overlapped(range(60), load, run, batch_size=3, workers=3)}
    assert len(runners) == 1
    assert len(loaders) == 3


@pytest.mark.parametrize("stage", ["items", "load", "run"])
def test_an_error_is_raised_at_its_place_and_ends_the_threads(stage: str):
    def items() -> Iterator[int]:
        for item in range(1000):
            if stage == "items" and item == 50:
                raise OSError("the list is gone")
            yield item

    def load(item: int) -> int:
        if stage == "load" and item == 50:
            raise RuntimeError("load")
        return item

    def run(batch: list[int]) -> int:
        if stage == "run" and 50 in batch:
            raise RuntimeError("run")
        return len(batch)

    batches = overlapped(items(), load, run, batch_size=4, workers=3)
    if stage != "items":
        assert [batch[0] for batch, _ in itertools.islice(batches, 12)] == list(range(0, 48, 4))
    with pytest.raises((OSError, RuntimeError), match="the list is gone" if stage == "items" else stage):
        list(batches)
    assert threads() == []


def test_closing_waits_for_no_more_than_is_under_way():
    began: list[int] = []
    hold = threading.Event()

    def load(item: int) -> int:
        began.append(item)
        if item >= 8:
            hold.wait(30)
        return item

    batches = overlapped(range(1000), load, sum, batch_size=4, workers=2)
    next(batches)
    while len(began) < 10:  # two loads are held, two wait behind them
        time.sleep(0.001)
    threading.Timer(0.05, hold.set).start()
    batches.close()
    assert threads() == []
    assert len(began) == 10
