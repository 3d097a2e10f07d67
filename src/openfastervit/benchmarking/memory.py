"""What memory a process takes, as far as the operating system tells."""

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

_PROC = Path("/proc/self")


def peak_bytes() -> int:
    """The most memory that this process held at once since ``forget_peak``, Python and libraries included.

    Where the peak cannot be forgotten (elsewhere than on Linux), since the process began.
    """
    if (_PROC / "status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_bytes() -> int:
    """What this process holds now; elsewhere than on Linux, the most it held."""
    return _status("VmRSS") if (_PROC / "status").exists() else peak_bytes()


def forget_peak() -> bool:
    """Give back what is not used, and let the peak begin anew. False where it cannot."""
    give_back()
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:  # not Linux, or a sandbox forbids it
        return False
    return True


def give_back() -> None:
    """Give memory that is not used back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int | None:
    """What processes may still take, the limit of a container included; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
    free = int(found[1]) * 1024 if found else None
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        left = limit - int((group / "memory.current").read_text(encoding="ascii"))
        free = left if free is None else min(free, left)
    return free


def limit_memory(size: int) -> None:
    """Let this process take no more than ``size`` bytes of data: what goes beyond fails, and the system lives on."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", (_PROC / "status").read_text(encoding="ascii"), re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024
