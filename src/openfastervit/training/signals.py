"""Signals that ask a run to save and stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what Slurm sends ahead of a job's end (``--signal=USR1@120``)."""


class StopSignals:
    """While it is open, the first signal is kept in ``received``; the second one interrupts at once."""

    default = signal.SIGTERM
    """What a process acts on that only heard of the signal from another one."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            self._before = {number: signal.signal(number, self._receive) for number in ASKING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
