"""Measuring cases: each in a process of its own, all in turns.

What else the machine does, its clock rate, its heat: they drift over minutes, and whoever is measured at a bad moment
looks slow. So cases that will be compared take turns, repeat by repeat, and drift meets all of them alike. Taking turns
they must all be there; and each is in a process of its own, so that one which runs out of memory, or crashes, ends
alone, and its peak of memory is its own.

A process whose turn it is not is stopped (``SIGSTOP``): the threads of some backends spin while they wait for work, and
would take the processor from the one that is measured. Spinning within its own turn is left as each backend has it, for
so it would run at a user's.

The processes that are there together form a block: of one kin (the same batch and precision, for instance), as many as
the free memory holds. Each row tells its block: of two rows in different blocks, drift may speak. A case that runs out
of memory while others hold theirs is measured again alone before it is said not to fit.
"""

import contextlib
import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic

from openfastervit.benchmarking import memory
from openfastervit.benchmarking.status import OK, RUNNING
from openfastervit.benchmarking.subject import Machine, Measured, R, Subject
from openfastervit.benchmarking.timing import TAIL_CALLS, calls_for, quartiles
from openfastervit.benchmarking.worker import Built, Failed, Timed, serve

SHARE = 0.6
"""Of the free memory that a block may fill."""
LARGEST_BLOCK = 64
"""Processes."""
PATIENCE = 10.0
"""Seconds that a process may take to end."""


@dataclass(frozen=True)
class Plan:
    """How often and how long."""

    repeats: int = 5
    seconds: float = 1.0
    """A repeat lasts about so long, and at least one call."""
    tail: bool = True
    """At batch 1, calls enough for a 99th percentile over all repeats."""

    def calls(self, case: Subject[Any], seconds_a_call: float) -> int:
        """Calls of a repeat."""
        least = -(-TAIL_CALLS // self.repeats) if case.batch_size == 1 and self.tail else 1
        return calls_for(seconds_a_call, self.seconds, least)


def measure(
    cases: Sequence[Subject[R]], machine: Machine, plan: Plan, *, tell: Callable[[str], None] = lambda line: None
) -> Iterator[list[R]]:
    """Measure cases, and give their rows as soon as they are known, then again with each repeat.

    Args:
        cases: In the order of who is compared with whom.
        machine: Where.
        plan: How often.
        tell: Told what goes on.

    Yields:
        New rows, and rows that replace earlier ones of the same cases. While repeats are missing the status is
        ``RUNNING`` and how many there are.
    """
    context = _context()
    waiting = list(cases)
    again: list[Subject[R]] = []
    number = 0
    while waiting or again:
        number += 1
        alone = not waiting
        block: _Block[R] = _Block(number, machine, plan, tell, context)
        try:
            yield from block.fill(again if alone else waiting, largest=1 if alone else LARGEST_BLOCK)
            yield from block.run()
        finally:
            block.end()
        again += block.again


@dataclass
class _Worker(Generic[R]):
    """A process, seen from outside."""

    case: Subject[R]
    process: BaseProcess
    connection: Connection
    built: Built
    seconds: list[list[float]] = field(default_factory=list)
    """Of each call, by repeat."""
    peak: int = 0


class _Block(Generic[R]):
    """Processes that take turns."""

    def __init__(
        self, number: int, machine: Machine, plan: Plan, tell: Callable[[str], None], context: BaseContext
    ) -> None:
        self.number = number
        self.again: list[Subject[R]] = []
        """Cases that did not fit beside the others."""
        self._machine = machine
        self._plan = plan
        self._tell = tell
        self._context = context
        self._workers: list[_Worker[R]] = []
        self._started: BaseProcess | None = None

    def fill(self, waiting: list[Subject[R]], largest: int) -> Iterator[list[R]]:
        """Take cases from the front of ``waiting`` while memory lasts; the rows of those that cannot be built."""
        room: float | None = None
        kin = waiting[0].kin
        while waiting and len(self._workers) < largest and waiting[0].kin == kin:
            case = waiting[0]
            missing = case.unavailable()
            if missing is not None:
                waiting.pop(0)
                yield [case.unmeasured(missing, threads=self._machine.threads)]
                continue
            self._tell(f"building {case}")
            if room is None and not self._machine.device.startswith("cuda"):
                free = memory.available_bytes()
                room = None if free is None else SHARE * free
            answer, process, connection = self._start(case)
            waiting.pop(0)
            if isinstance(answer, Failed):
                if self._workers and answer.status.startswith("out of memory"):
                    self.again.append(case)
                    return
                yield [case.unmeasured(answer.status, threads=self._machine.threads)]
                continue
            self._workers.append(_Worker(case, process, connection, answer, peak=answer.peak))
            self._started = None
            if room is None and answer.free is not None:
                room = SHARE * answer.free
            if room is not None and self._taken() > room:
                return

    def run(self) -> Iterator[list[R]]:
        """All repeats of all; the rows after each, for they may be the last."""
        for repeat in range(self._plan.repeats):
            if not self._workers:
                return
            self._tell(
                f"block {self.number}: repeat {repeat + 1} of {self._plan.repeats}, {len(self._workers)} in turns"
            )
            for worker in self._workers[:: -1 if repeat % 2 else 1]:
                answer = self._turn(worker)
                if isinstance(answer, Timed):
                    worker.seconds.append(answer.seconds)
                    worker.peak = max(worker.peak, answer.peak)
                    continue
                beside_others = len(self._workers) > 1
                self._workers.remove(worker)
                if beside_others and answer.status.startswith("out of memory"):
                    self.again.append(worker.case)
                else:
                    yield [worker.case.unmeasured(answer.status, threads=worker.built.threads)]
            yield [row_of(worker, self.number, self._plan) for worker in self._workers]

    def end(self) -> None:
        """End all processes, stopped ones too."""
        if self._started is not None:
            _end(self._started, 0)
        for worker in self._workers:
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                worker.connection.send(None)
            _go_on(worker.process)
        for worker in self._workers:
            _end(worker.process, PATIENCE)
            worker.connection.close()

    def _taken(self) -> int:
        """Bytes that all hold at rest and one takes at work. What they held before is mostly shared."""
        built = [worker.built for worker in self._workers]
        return sum(one.held - one.before for one in built) + max(one.peak - one.before for one in built)

    def _start(self, case: Subject[R]) -> tuple[Built | Failed, BaseProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=serve, args=(case, self._machine, theirs), daemon=True
        )
        self._started = process
        process.start()
        theirs.close()
        answer = _answer(process, ours)
        assert not isinstance(answer, Timed)
        if isinstance(answer, Failed):
            _end(process, PATIENCE)
            ours.close()
            self._started = None
        else:
            _stop(process)
        return answer, process, ours

    def _turn(self, worker: _Worker[R]) -> Timed | Failed:
        _go_on(worker.process)
        with contextlib.suppress(BrokenPipeError):  # it ended while it waited: the answer will say so
            worker.connection.send(self._plan.calls(worker.case, worker.built.seconds_a_call))
        answer = _answer(worker.process, worker.connection)
        assert not isinstance(answer, Built)
        if isinstance(answer, Timed):
            _stop(worker.process)
        else:
            _end(worker.process, PATIENCE)
            worker.connection.close()
        return answer


def row_of(worker: _Worker[R], block: int, plan: Plan) -> R:
    """The row of a worker's repeats."""
    case, built = worker.case, worker.built
    rates = [case.batch_size * len(seconds) / sum(seconds) for seconds in worker.seconds]
    low, high = quartiles(rates)
    found = Measured(
        images_per_second=statistics.median(rates),
        images_per_second_q1=low,
        images_per_second_q3=high,
        seconds=tuple(second for seconds in worker.seconds for second in seconds),
        peak_memory_mb=worker.peak / 1e6,
        memory_before_mb=built.before / 1e6,
        memory_kind=built.memory_kind,
        repeats=len(rates),
        threads=built.threads,
        block=block,
        facts=built.facts,
    )
    return case.measured(
        found, OK if len(rates) == plan.repeats else f"{RUNNING}: {len(rates)} of {plan.repeats} repeats"
    )


def _answer(process: BaseProcess, connection: Connection) -> Built | Timed | Failed:
    """What a process says, or what its end says."""
    ready = wait([connection, process.sentinel])
    if connection in ready:
        with contextlib.suppress(EOFError, ConnectionResetError):  # it ended: told below
            answer: Built | Timed | Failed = connection.recv()
            return answer
    return _ended(process)


def _ended(process: BaseProcess) -> Failed:
    process.join()
    code = process.exitcode
    if code == -signal.SIGKILL:
        return Failed("out of memory: the system ended the process (SIGKILL)")
    if code is not None and code < 0:
        return Failed(f"failed: the process ended by {signal.Signals(-code).name}")
    return Failed(f"failed: the process ended with exit code {code}")


def _end(process: BaseProcess, seconds: float) -> None:
    """Give a process so long to end of itself, as backends like to, and then no longer."""
    if process.pid is not None:  # else it never began
        process.join(seconds)
        process.kill()
        process.join()


def _stop(process: BaseProcess) -> None:
    if process.pid is not None and hasattr(signal, "SIGSTOP"):
        os.kill(process.pid, signal.SIGSTOP)


def _go_on(process: BaseProcess) -> None:
    if process.pid is not None and hasattr(signal, "SIGCONT"):
        with contextlib.suppress(ProcessLookupError):  # it is gone: its answer will say so
            os.kill(process.pid, signal.SIGCONT)


def _context() -> BaseContext:
    """Processes made from one that has imported torch already and done nothing with it: they start at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openfastervit.benchmarking.nursery"])
    with _ctrl_c_ignored():  # by the server, which takes that over: it goes to all of a terminal's processes
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """In processes that are started meanwhile; elsewhere than in the main thread signals cannot be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
