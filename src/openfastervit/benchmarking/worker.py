"""A process that holds one network on one engine, and times it when it is told to.

It knows nothing of the others. What goes wrong in it, memory that runs out included, ends it and no other: its last
message says what happened, or its exit code does.
"""

import contextlib
import ctypes
import os
import re
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from openfastervit.benchmarking import memory
from openfastervit.benchmarking.cases import Case
from openfastervit.benchmarking.peers import build_network
from openfastervit.benchmarking.timing import time_calls, warm_up
from openfastervit.inference.engines import Engine, EngineError, Settings, create_engine
from openfastervit.inference.engines.engine import in_channels

CALIBRATION_IMAGES = 8
"""Random ones: what they are decides int8's ranges, not its speed."""
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|bad allocation|failed to alloc", re.I
)


@dataclass(frozen=True)
class Machine:
    """Where and how a case is measured."""

    device: str = "cpu"
    threads: int | None = None
    memory_limit: int | None = None
    """Bytes of data that a process may take."""
    warm_up_seconds: float = 0.3


@dataclass(frozen=True)
class Built:
    """The engine is there and warm."""

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


@dataclass(frozen=True)
class Timed:
    """A repeat."""

    seconds: list[float]
    """Of each call."""
    peak: int
    """Bytes, since the engine was built."""


@dataclass(frozen=True)
class Failed:
    """It cannot be measured."""

    status: str


def serve(case: Case, machine: Machine, connection: Connection) -> None:
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


def status_of(error: BaseException) -> str:
    """What a row says of an error: a kind, a colon, and the message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory: {_short(text)}"
    if isinstance(error, _UnsupportedSizeError):
        return f"unsupported at this size: {_short(text)}"
    if isinstance(error, EngineError):
        return f"unavailable: {_short(text)}"
    return f"failed: {type(error).__name__}: {_short(text)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's and other backends' have no class in common."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_NO_MEMORY.search(str(error)))


class _UnsupportedSizeError(ValueError):
    """A network does not take images of that size."""


def _serve(case: Case, machine: Machine, connection: Connection) -> None:
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    meter = _Meter(case, machine)
    network = _network(case)
    channels = in_channels(network)
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.randn(count, channels, *case.size, generator=generator)

    settings = Settings(
        size=case.size,
        precision=case.precision,
        batch_size=case.batch_size,
        device=machine.device,
        threads=machine.threads,
        calibration=images(CALIBRATION_IMAGES) if case.precision == "int8" else None,
    )
    with contextlib.closing(create_engine(network, case.engine, settings)) as engine:
        batch = images(case.batch_size).to(engine.device)
        call = _call(engine, batch)
        del network
        call()  # what compiles does so now, and its memory is not counted
        meter.begin()
        seconds = warm_up(call, seconds=machine.warm_up_seconds)
        peak = meter.peak()
        meter.tidy()
        held = meter.held()
        connection.send(Built(seconds, torch.get_num_threads(), held, peak, meter.before, meter.free, meter.kind))
        while (calls := connection.recv()) is not None:
            timed = time_calls(call, calls)
            peak = max(peak, meter.peak())
            meter.tidy()
            connection.send(Timed(timed, peak))


def _call(engine: Engine, batch: Tensor) -> Callable[[], Tensor]:
    """One call, done when it returns."""
    if engine.device.type == "cuda":

        def call() -> Tensor:
            logits = engine(batch)
            torch.cuda.synchronize(engine.device)
            return logits

        return call
    return lambda: engine(batch)


def _network(case: Case) -> nn.Module:
    """The network, once a pass of one image shows that it takes that size."""
    try:
        network = build_network(case.architecture, case.size, peer=case.peer, options=case.options)
        with torch.inference_mode():
            network(torch.zeros(1, in_channels(network), *case.size))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _UnsupportedSizeError(str(error) or type(error).__name__) from error
    return network


class _Meter:
    """Memory of this process, or of the GPU.

    On a GPU torch counts what its own engines take. Of others the driver tells what is missing: their pools, which they
    keep between calls.
    """

    def __init__(self, case: Case, machine: Machine) -> None:
        self._cuda = torch.device(machine.device) if machine.device.startswith("cuda") else None
        self._counted = case.engine.startswith("torch")
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
        return memory.held_bytes() if self._cuda is None else self._taken()

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


def _short(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
