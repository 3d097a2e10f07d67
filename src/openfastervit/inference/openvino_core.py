"""OpenVINO's ``Core``, one for the process, that leaves the stack of signal handlers as it was; and which processors
its threads may keep.

OpenVINO's CPU plugin gives the thread that loads it another stack for signal handlers (the registers of AMX need much
room), and puts the one before back when the plugin goes. Each ``Core`` loads a plugin of its own. Where the first of
two goes first, the second puts back a stack whose memory is gone, and the next signal with a handler ends the process
without a word: that of a data loader's worker that is done, for one.
"""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Stack(ctypes.Structure):
    """``stack_t`` of signal.h, as Linux has it."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@functools.cache
def openvino_core() -> Any:
    """The ``openvino.Core`` to compile with and to read with; its CPU plugin is loaded."""
    import openvino

    core = openvino.Core()
    with kept_signal_stack():
        core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def may_pin(threads: int) -> bool:
    """Whether threads may be bound to processors: only where they are as many as this process may use.

    OpenVINO binds them to the first ones, in each process. Two processes with a thread each, as a cluster or a server
    with workers has them, would share the first processor and leave the second idle.
    """
    return hasattr(os, "sched_getaffinity") and threads >= len(os.sched_getaffinity(0))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Afterwards this thread's signal handlers have the stack that they had, whatever was loaded meanwhile.

    A plugin that goes later sees that the stack is not its own, and puts nothing back.
    """
    if not sys.platform.startswith("linux"):  # the plugin does so on Linux alone
        yield
        return
    library = ctypes.CDLL(None)
    before = _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
