"""Signals that ask a run to save and stop."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what Slurm sends ahead of a job's end (``--signal=USR1@120``)."""

ECHO = 1.0
"""Seconds in which a further Ctrl-C counts as the same one: torchrun passes on what the terminal has sent already."""


class StopSignals:
    """While it is open, the first signal is kept in ``received``; a second Ctrl-C interrupts at once.

    Other signals that follow the first change nothing: schedulers and launchers send several while a run saves.
    A signal that was ignored before, as Ctrl-C is in a job in the background, stays so.
    """

    default = signal.SIGTERM
    """What a process acts on that only heard of the signal from another one."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            for number in ASKING:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: a handler that is not Python's, not to be put back
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at > ECHO:
            raise KeyboardInterrupt
