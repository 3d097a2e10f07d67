"""Processes that measure: how they are made, stopped between their turns, listened to and ended."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

PATIENCE = 10.0
"""Seconds that a process may take to end."""


def context() -> BaseContext:
    """Processes made from one that has imported torch already and done nothing with it: they start at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openfastervit.benchmarking.nursery"])
    with _ctrl_c_ignored():  # by the server, which takes that over: it goes to all of a terminal's processes
        forkserver.ensure_running()
    return context


def speaking(talks: Sequence[tuple[BaseProcess, Connection]], seconds: float | None = None) -> list[int]:
    """Indices of those that have said something, or ended; of none where that takes longer than ``seconds``."""
    ready = wait([end for process, connection in talks for end in (connection, process.sentinel)], seconds)
    return [i for i, (process, connection) in enumerate(talks) if connection in ready or process.sentinel in ready]


def how_it_ended(process: BaseProcess) -> str:
    """The status of a case whose process ended without an answer."""
    process.join()
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "out of memory: the system ended the process (SIGKILL)"
    if code is not None and code < 0:
        return f"failed: the process ended by {signal.Signals(-code).name}"
    return f"failed: the process ended with exit code {code}"


def end(process: BaseProcess, seconds: float = PATIENCE) -> None:
    """Give a process so long to end of itself, as backends like to, and then no longer."""
    if process.pid is not None:  # else it never began
        process.join(seconds)
        process.kill()
        process.join()


def stop(process: BaseProcess) -> None:
    """It does nothing until ``go_on``, where the system can do that."""
    if process.pid is not None and hasattr(signal, "SIGSTOP"):
        os.kill(process.pid, signal.SIGSTOP)


def go_on(process: BaseProcess) -> None:
    """Undo ``stop``."""
    if process.pid is not None and hasattr(signal, "SIGCONT"):
        with contextlib.suppress(ProcessLookupError):  # it is gone: its answer will say so
            os.kill(process.pid, signal.SIGCONT)


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
