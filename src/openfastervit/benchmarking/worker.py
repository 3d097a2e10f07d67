"""A process that holds what one case measures, and times it when it is told to.

It knows nothing of the others. What goes wrong in it, memory that runs out included, ends it and no other: its last
message says what happened, or its exit code does.
"""

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from openfastervit.benchmarking import memory
from openfastervit.benchmarking.status import status_of
from openfastervit.benchmarking.subject import Machine, Subject
from openfastervit.benchmarking.timing import time_calls, warm_up

CONTEXT = 600_000_000
"""Bytes of a GPU that a process takes for its context and libraries, beside what torch counts: about so many."""
LONG = 2.0
"""Seconds of a call from which on none goes uncounted before those of a turn."""


@dataclass(frozen=True)
class Built:
    """What is measured is there and warm."""

    seconds_a_call: float
    threads: int
    held: int
    """Bytes that it holds between calls, of the processor's memory or the GPU's."""
    peak: int
    """Bytes that it took at most during calls, of the same."""
    before: int
    """Bytes that were taken before there was a network."""
    free: int | None
    """Bytes that were free before, where they are counted."""
    memory_kind: str
    facts: Mapping[str, Any]
    """What the row says beside the figures."""


@dataclass(frozen=True)
class Timed:
    """A repeat."""

    seconds: list[float]
    """Of each call."""
    peak: int
    """Bytes, since it was built."""


@dataclass(frozen=True)
class Failed:
    """It cannot be measured."""

    status: str


def serve(case: Subject[Any], machine: Machine, connection: Connection) -> None:
    """Build what the case asks for, answer ``Built``; then a ``Timed`` for each number of calls, until None comes.

    Where something goes wrong the answer is ``Failed``, and the process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who started this one decides
    end_with_parent()
    _end_first()
    try:
        if machine.memory_limit is not None:
            memory.limit_memory(machine.memory_limit)
        _serve(case, machine, connection)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # nobody waits for an answer any more
    except Exception as error:  # whatever a backend throws becomes this row's status
        if os.environ.get("FASTERVIT_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        connection.send(Failed(status_of(error)))


def _serve(case: Subject[Any], machine: Machine, connection: Connection) -> None:
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    meter = _Meter(machine, counted=case.counted)
    with case.open(machine) as called:
        call = called.call
        call()  # what compiles does so now, and its memory is not counted
        meter.begin()
        seconds = warm_up(call, seconds=machine.warm_up_seconds)
        peak = meter.peak()
        meter.tidy()
        held, facts = meter.held(), dict(called.facts())
        threads = torch.get_num_threads()
        connection.send(Built(seconds, threads, held, peak, meter.before, meter.free, meter.kind, facts))
        while (calls := connection.recv()) is not None:
            timed = time_calls(call, calls, settle=seconds < LONG)
            peak = max(peak, meter.peak())
            meter.tidy()
            connection.send(Timed(timed, peak))


class _Meter:
    """Memory of this process, or of the GPU.

    On a GPU torch counts what its own engines take, whatever other processes do. Of others the driver tells what is
    missing: their pools, which they keep between calls.
    """

    def __init__(self, machine: Machine, *, counted: bool) -> None:
        self._cuda = torch.device(machine.device) if machine.device.startswith("cuda") else None
        self._counted = counted
        self.free: int | None
        if self._cuda is None:
            self.kind = "process"
            self.before, self.free = memory.held_bytes(), memory.available_bytes()
            return
        self.kind = "torch on the GPU" if self._counted else "taken from the GPU"
        torch.cuda.init()
        self.before, self.free = 0, torch.cuda.mem_get_info(self._cuda)[0]

    def begin(self) -> None:
        """Count peaks from now on."""
        if self._cuda is None:
            if not memory.forget_peak():
                self.kind = "process, building included"
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._cuda)

    def peak(self) -> int:
        """The most that was held since ``begin``, in bytes."""
        if self._cuda is None:
            return memory.peak_bytes()
        if self._counted:
            return int(torch.cuda.max_memory_allocated(self._cuda))
        return self._taken()

    def held(self) -> int:
        """What is held now, in bytes."""
        if self._cuda is None:
            return memory.held_bytes()
        return int(torch.cuda.memory_reserved(self._cuda)) + CONTEXT if self._counted else self._taken()

    def tidy(self) -> None:
        """Give back what only a call needs: others come before the next one."""
        if self._cuda is None:
            memory.give_back()
        else:
            torch.cuda.empty_cache()

    def _taken(self) -> int:
        assert self._cuda is not None
        assert self.free is not None
        return max(0, self.free - torch.cuda.mem_get_info(self._cuda)[0])


def end_with_parent() -> None:
    """Where Linux allows it, end this process when the one that made it is gone, stopped or not."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_first() -> None:
    """Where Linux runs out of memory, let it end this process before others."""
    with contextlib.suppress(OSError):  # not Linux, or a sandbox forbids it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


_PR_SET_PDEATHSIG = 1
