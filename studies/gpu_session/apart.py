"""Rows that processes of their own make: one that dies takes a row with it, and the rest goes on.

An error of a CUDA kernel spoils its whole process. So after such an error, or a crash, what is left of a job goes on in
a new process.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from openfastervit.benchmarking import processes
from openfastervit.benchmarking.status import OUT_OF_TIME, status_of
from openfastervit.benchmarking.worker import end_with_parent

Cells = Mapping[str, Any]
"""Of a row, by column."""
TICK = 0.5
"""Seconds between two looks at the clock."""


@dataclass(frozen=True)
class Job:
    """Items that follow one another in a process."""

    name: str
    make: Callable[[Any, str], Sequence[Cells]]
    """The rows of an item on a device. Importable: processes find it by its name."""
    label: Callable[[Any], Cells]
    """What a row of an item that failed says beside its status."""
    items: Sequence[Any]
    """Plain data."""


@dataclass
class _Running:
    job: Job
    left: deque[Any]
    process: BaseProcess
    connection: Connection
    failures: int = field(default=0)


def run_apart(
    jobs: Sequence[Job],
    device: str,
    add: Callable[[Job, Sequence[Cells]], None],
    *,
    at_once: int = 1,
    until: Callable[[], float],
    stopped: threading.Event,
) -> None:
    """Run jobs, and hand over the rows of each item as they come.

    Args:
        jobs: In the order in which they begin.
        device: For all of them.
        add: Takes rows. Called in this thread.
        at_once: Processes.
        until: When to end, by ``time.monotonic``; it may change. What is left then has rows that say so.
        stopped: Set to end at once, without rows for what is left.
    """
    waiting = [(job, deque(job.items)) for job in jobs if job.items]
    running: list[_Running] = []
    try:
        while (waiting or running) and not stopped.is_set() and time.monotonic() < until():
            while waiting and len(running) < at_once:
                running.append(_start(*waiting.pop(0), device))
            for i in reversed(processes.speaking([(one.process, one.connection) for one in running], TICK)):
                one = running[i]
                if _listen(one, add):
                    continue
                running.remove(one)
                if one.left:
                    waiting.insert(0, (one.job, one.left))
        if not stopped.is_set():
            for job, left in [*((one.job, one.left) for one in running), *waiting]:
                for item in left:
                    add(job, [{**job.label(item), "status": OUT_OF_TIME}])
    finally:
        for one in running:
            processes.end(one.process, 0)
            one.connection.close()


def _start(job: Job, left: "deque[Any]", device: str) -> _Running:
    context = processes.context()
    ours, theirs = context.Pipe()
    process = context.Process(  # type: ignore[attr-defined]
        target=_serve, args=(job.make, list(left), device, theirs), daemon=True
    )
    process.start()
    theirs.close()
    return _Running(job, left, process, ours)


def _listen(one: _Running, add: Callable[[Job, Sequence[Cells]], None]) -> bool:
    """Take what a process says of its next item; False when it has ended."""
    try:
        said = one.connection.recv() if one.connection.poll() else None
    except (EOFError, ConnectionResetError):
        said = None
    if said is None:
        if one.left:
            item = one.left.popleft()
            add(one.job, [{**one.job.label(item), "status": processes.how_it_ended(one.process)}])
        one.connection.close()
        return False
    rows, status, goes_on = said
    item = one.left.popleft()
    add(one.job, rows if status is None else [{**one.job.label(item), "status": status}])
    if goes_on and one.left:
        return True
    processes.end(one.process)
    one.connection.close()
    return False


def _serve(make: Callable[[Any, str], Sequence[Cells]], items: list[Any], device: str, connection: Connection) -> None:
    """Answer each item with its rows, or with a status; and whether this process goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who started this one decides
    end_with_parent()
    for item in items:
        try:
            connection.send((list(make(item, device)), None, True))
        except (BrokenPipeError, ConnectionResetError):
            return  # nobody waits for an answer any more
        except Exception as error:  # whatever a kernel throws becomes this row's status
            spoilt = device.startswith("cuda") and isinstance(error, RuntimeError)
            connection.send(([], status_of(error), not spoilt))
            if spoilt:
                return
