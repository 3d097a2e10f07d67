"""Loading and running at the same time: threads load what comes next while another runs what is there."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")

AHEAD = 2
"""Batches that are loaded or run while the caller has another one: one in the engine, one before it."""


def overlapped(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    run: Callable[[list[Loaded]], Result],
    *,
    batch_size: int,
    workers: int,
) -> Generator[tuple[list[Item], Result], None, None]:
    """Batches of items with what ``run`` makes of them, in order.

    ``load`` is called in ``workers`` threads, ``run`` in one of its own, and the caller's code is the third stage. No
    more than ``AHEAD`` batches are taken from ``items`` before the caller asks for them. An exception of ``load`` or
    ``run`` is raised at its batch's place. Closing the generator ends the threads: what runs by then is waited for,
    nothing else is begun.

    Args:
        items: What to work on; iterated in the caller's thread.
        load: An item to what ``run`` takes of it.
        run: A batch of loaded items to its result. The last batch may be smaller.
        batch_size: Items in a batch.
        workers: Threads that load.
    """
    items = iter(items)
    under_way: deque[tuple[list[Item], Future[Result]]] = deque()
    loaders = ThreadPoolExecutor(workers, thread_name_prefix="load")
    runner = ThreadPoolExecutor(1, thread_name_prefix="run")

    def run_loaded(loading: list[Future[Loaded]]) -> Result:
        return run([future.result() for future in loading])

    try:
        while True:
            while len(under_way) <= AHEAD and (batch := list(islice(items, batch_size))):
                under_way.append((batch, runner.submit(run_loaded, [loaders.submit(load, item) for item in batch])))
            if not under_way:
                return
            batch, result = under_way.popleft()
            yield batch, result.result()
    finally:
        # The loaders first: the runner may be waiting for them, and a cancelled load ends its wait.
        loaders.shutdown(wait=False, cancel_futures=True)
        runner.shutdown(cancel_futures=True)
        loaders.shutdown()
