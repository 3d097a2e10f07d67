"""What a row says of how its measurement went: ``ok``, or a kind, a colon, and what happened."""

import re

import torch

from openfastervit.inference.engines import EngineError

OK = "ok"
"""The status of a row that was measured whole. Others begin with a kind and a colon, then tell what happened."""
RUNNING = "running"
"""The kind of a row that lacks repeats, while they are measured."""
OUT_OF_TIME = "not measured: out of time"
"""The kind of a row for which the time that was given did not suffice."""
INTERRUPTED = "interrupted"
"""The kind of a row that will lack them for ever."""

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|bad allocation|failed to alloc", re.I
)


class UnsupportedError(ValueError):
    """What was asked for does not go together, whatever the machine: a head and a backbone, for instance."""

    kind = "unsupported"


class UnsupportedSizeError(UnsupportedError):
    """A network does not take images of that size."""

    kind = "unsupported at this size"


def status_of(error: BaseException) -> str:
    """What a row says of an error: a kind, a colon, and the message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory: {_short(text)}"
    if isinstance(error, UnsupportedError):
        return f"{error.kind}: {_short(text)}"
    if isinstance(error, EngineError):
        return f"unavailable: {_short(text)}"
    return f"failed: {type(error).__name__}: {_short(text)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's and other backends' have no class in common."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_NO_MEMORY.search(str(error)))


def _short(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
