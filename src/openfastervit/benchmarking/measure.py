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

Building is no part of what is measured. Where time is short several may be built at once, and what is not ready in
time is left out (``Plan``).
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic

from openfastervit.benchmarking import memory, processes
from openfastervit.benchmarking.status import OK, OUT_OF_TIME, RUNNING
from openfastervit.benchmarking.subject import Machine, Measured, R, Subject
from openfastervit.benchmarking.timing import TAIL_CALLS, calls_for, quartiles
from openfastervit.benchmarking.worker import Built, Failed, Timed, serve

SHARE = 0.6
"""Of the free memory that a block may fill, unless a plan says otherwise."""
LARGEST_BLOCK = 64
"""Processes."""
GRACE = 5.0
"""Seconds past the end of the time that a turn may take, before its process is ended."""


@dataclass(frozen=True)
class Plan:
    """How often and how long."""

    repeats: int = 5
    seconds: float = 1.0
    """A repeat lasts about so long, and at least one call."""
    tail: bool = True
    """At batch 1, calls enough for a 99th percentile over all repeats."""
    share: float = SHARE
    """Of the free memory that a block may fill."""
    builders: int = 1
    """Processes that build at once. What an engine measures while it is built, the others then disturb."""
    built_until: float = math.inf
    """When building ends, by ``time.monotonic``: what is not ready by then is not measured."""
    until: float = math.inf
    """When measuring ends: rows keep the repeats that they have."""

    def calls(self, case: Subject[Any], seconds_a_call: float) -> int:
        """Calls of a repeat."""
        least = -(-TAIL_CALLS // self.repeats) if case.batch_size == 1 and self.tail else 1
        return calls_for(seconds_a_call, self.seconds, least)


def measure(
    cases: Sequence[Subject[R]],
    machine: Machine,
    plan: Plan,
    *,
    tell: Callable[[str], None] = lambda line: None,
    before_turns: Callable[[], None] = lambda: None,
) -> Iterator[list[R]]:
    """Measure cases, and give their rows as soon as they are known, then again with each repeat.

    Args:
        cases: In the order of who is compared with whom.
        machine: Where.
        plan: How often.
        tell: Told what goes on.
        before_turns: Called when a block is built and nothing is measured yet: what must not go on meanwhile can end.

    Yields:
        New rows, and rows that replace earlier ones of the same cases. While repeats are missing the status is
        ``RUNNING`` and how many there are.
    """
    context = processes.context()
    waiting = list(cases)
    again: list[Subject[R]] = []
    number = 0
    while waiting or again:
        number += 1
        alone = not waiting
        block: _Block[R] = _Block(number, machine, plan, tell, context)
        try:
            yield from block.fill(again if alone else waiting, largest=1 if alone else LARGEST_BLOCK)
            before_turns()
            yield from block.run()
        finally:
            block.end()
        again += block.again


@dataclass
class _Worker(Generic[R]):
    """A process, seen from outside."""

    case: Subject[R]
    place: int
    """In the order of the cases: of those that build at once another may be ready first."""
    process: BaseProcess
    connection: Connection
    built: Built
    seconds: list[list[float]] = field(default_factory=list)
    """Of each call, by repeat."""
    peak: int = 0

    @property
    def seconds_a_call(self) -> float:
        """As far as is known. When it was built, others may have been at work."""
        return min([self.built.seconds_a_call, *map(statistics.median, self.seconds[-1:])])


@dataclass(frozen=True)
class _Building(Generic[R]):
    """A process that has not answered yet."""

    case: Subject[R]
    place: int
    process: BaseProcess
    connection: Connection


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
        self._building: list[_Building[R]] = []
        self._once_more: list[Subject[R]] = []
        """Cases that did not fit beside others that were being built, as they may when those are built."""
        self._tried: set[Hashable] = set()
        self._room: float | None = None
        """Bytes that the block may take; None while that is not known."""

    def fill(self, waiting: list[Subject[R]], largest: int) -> Iterator[list[R]]:
        """Take cases from the front of ``waiting`` while memory and time last; the rows of those not built."""
        kin = waiting[0].kin
        place = 0
        full = False
        if not self._machine.device.startswith("cuda"):
            free = memory.available_bytes()
            self._room = None if free is None else self._plan.share * free
        while True:
            while (
                not full
                and waiting
                and waiting[0].kin == kin
                and len(self._building) < self._plan.builders
                and len(self._building) + len(self._workers) < largest
                and time.monotonic() < self._plan.built_until
            ):
                case = waiting.pop(0)
                place += 1
                missing = case.unavailable()
                if missing is not None:
                    yield [case.unmeasured(missing, threads=self._machine.threads)]
                    continue
                self._tell(f"building {case}")
                self._start(case, place)
            if not self._building:
                break
            left = self._plan.built_until - time.monotonic()
            for answered in self._answered(None if math.isinf(left) else max(0.0, left)):
                rows, fits = self._settled(answered)
                full = full or not fits
                if rows:
                    yield rows
                kindred = next((i for i, case in enumerate(waiting) if case.kin != kin), len(waiting))
                waiting[kindred:kindred] = self._once_more
                self._once_more.clear()
            if time.monotonic() >= self._plan.built_until:
                for late in list(self._building):
                    self._building.remove(late)
                    processes.end(late.process, 0)
                    late.connection.close()
                    yield [late.case.unmeasured(f"{OUT_OF_TIME}: it was still being built", threads=None)]
        if time.monotonic() >= self._plan.built_until:
            while waiting and waiting[0].kin == kin:
                yield [waiting.pop(0).unmeasured(f"{OUT_OF_TIME}: building it did not begin", threads=None)]
        self._workers.sort(key=lambda worker: worker.place)

    def run(self) -> Iterator[list[R]]:
        """All repeats of all; the rows after each, for they may be the last."""
        for repeat in range(self._plan.repeats):
            if not self._workers:
                return
            self._tell(
                f"block {self.number}: repeat {repeat + 1} of {self._plan.repeats}, {len(self._workers)} in turns"
            )
            for worker in self._workers[:: -1 if repeat % 2 else 1]:
                if time.monotonic() >= self._plan.until:
                    yield self._rows_at_the_end()
                    return
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
        for building in self._building:
            processes.end(building.process, 0)
        for worker in self._workers:
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                worker.connection.send(None)
            processes.go_on(worker.process)
        for worker in self._workers:
            processes.end(worker.process)
            worker.connection.close()

    def _rows_at_the_end(self) -> list[R]:
        """Rows of what was measured when time was over."""
        late = f"{OUT_OF_TIME}: no repeat was measured"
        return [
            row_of(worker, self.number, self._plan)
            if worker.seconds
            else worker.case.unmeasured(late, threads=worker.built.threads)
            for worker in self._workers
        ]

    def _taken(self) -> int:
        """Bytes that all hold at rest and one takes at work. What they held before is mostly shared."""
        built = [worker.built for worker in self._workers]
        return sum(one.held - one.before for one in built) + max(one.peak - one.before for one in built)

    def _start(self, case: Subject[R], place: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=serve, args=(case, self._machine, theirs), daemon=True
        )
        self._building.append(_Building(case, place, process, ours))
        process.start()
        theirs.close()

    def _answered(self, seconds: float | None) -> list[_Building[R]]:
        """Those that have answered, once there is one, or none in so long."""
        ready = processes.speaking([(one.process, one.connection) for one in self._building], seconds)
        return [self._building[i] for i in ready]

    def _settled(self, building: _Building[R]) -> tuple[list[R], bool]:
        """Rows that came of building it, and whether there is room for more."""
        answer = _answer(building.process, building.connection)
        assert not isinstance(answer, Timed)
        if isinstance(answer, Built):
            processes.stop(building.process)
            self._building.remove(building)
            self._workers.append(
                _Worker(building.case, building.place, building.process, building.connection, answer, peak=answer.peak)
            )
            if self._room is None and answer.free is not None:
                self._room = self._plan.share * answer.free
            return [], self._room is None or self._taken() <= self._room
        processes.end(building.process)
        building.connection.close()
        self._building.remove(building)
        no_memory = answer.status.startswith("out of memory")
        if no_memory and self._building and building.case.key not in self._tried:
            self._tried.add(building.case.key)
            self._once_more.append(building.case)
            return [], True
        if no_memory and (self._workers or self._building):
            self.again.append(building.case)
            return [], False
        return [building.case.unmeasured(answer.status, threads=self._machine.threads)], True

    def _turn(self, worker: _Worker[R]) -> Timed | Failed:
        processes.go_on(worker.process)
        with contextlib.suppress(BrokenPipeError):  # it ended while it waited: the answer will say so
            worker.connection.send(self._plan.calls(worker.case, worker.seconds_a_call))
        left = self._plan.until + GRACE - time.monotonic()
        if not processes.speaking([(worker.process, worker.connection)], None if math.isinf(left) else max(0.0, left)):
            processes.end(worker.process, 0)
            worker.connection.close()
            return Failed(f"{OUT_OF_TIME}: its turn did not end")
        answer = _answer(worker.process, worker.connection)
        assert not isinstance(answer, Built)
        if isinstance(answer, Timed):
            processes.stop(worker.process)
        else:
            processes.end(worker.process)
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
        rates=tuple(rates),
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
    processes.speaking([(process, connection)])
    if connection.poll():
        with contextlib.suppress(EOFError, ConnectionResetError):  # it ended: told below
            answer: Built | Timed | Failed = connection.recv()
            return answer
    return Failed(processes.how_it_ended(process))
